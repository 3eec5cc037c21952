package container

import (
	"maps"
	"path"
	"strings"
	"testing"

	"github.com/orlop-io/orlop/internal/platform/cgroup"
)

func TestPlace(t *testing.T) {
	h, err := cgroup.Open(cgroup.Options{Driver: cgroup.Cgroupfs})
	if err != nil {
		t.Fatal(err)
	}
	own, err := h.Own()
	if err != nil {
		t.Fatal(err)
	}
	beside := "" // with cgroup2 alone
	if h.Layout().Mode == cgroup.V2 {
		beside, own = strings.TrimSuffix(path.Dir("/"+own[""]), "/"), nil
	}
	for _, tt := range []struct {
		wanted  string
		systemd bool
		want    string // "" is an error
	}{
		{"/a/b", false, "/a/b"},
		{"/a/../../b", false, "/b"},
		{"a/b", false, beside + "/a/b"},
		{"../../b", false, beside + "/b"},
		{"", false, beside + "/id"},
		{"", true, "/system.slice/orlop-id.scope"},
		{"machine.slice:libpod:x", true, "/machine.slice/libpod-x.scope"},
		{":cri:x", true, "/system.slice/cri-x.scope"},
		{"a-b.slice::x", true, "/a-b.slice/x.scope"},
		{"a.slice:p:b.slice", true, "/b.slice"},
		{"/a/b", true, ""},
		{"a:b", true, ""},
		{"a:b:c:d", true, ""},
		{"a:b:c", true, ""},
		{"a/b.slice:b:c", true, ""},
		{"-.slice:b:c", true, ""},
		{"a.slice:b:", true, ""},
		{"a.slice:../b:c", true, ""},
	} {
		r := record{ID: "id", Driver: cgroup.Cgroupfs}
		if tt.systemd {
			r.Driver = cgroup.Systemd
		}
		err := r.place(tt.wanted, h)
		if err != nil {
			r.Cgroup = ""
		}
		if r.Cgroup != tt.want {
			t.Errorf("%q (systemd %v): %q %v, want %q", tt.wanted, tt.systemd, r.Cgroup, err, tt.want)
		}
		below := own
		if tt.systemd || path.IsAbs(tt.wanted) {
			below = nil
		}
		if !maps.Equal(r.CgroupBelow, below) {
			t.Errorf("%q (systemd %v): below %v, want %v", tt.wanted, tt.systemd, r.CgroupBelow, below)
		}
	}
}

func FuzzPasswd(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/sh\n")
	f.Add(":::::::\n::\n")
	f.Fuzz(func(t *testing.T, file string) {
		passwd(strings.NewReader(file), func(e []string) bool {
			if len(e) < 7 {
				t.Fatalf("%q", e)
			}
			return true
		})
	})
}

func FuzzSubgroupPaths(f *testing.F) {
	f.Add("a/b", "")
	f.Add("cpu,memory:/a", "pids:b")
	f.Add(":a", ",:")
	f.Fuzz(func(t *testing.T, one, two string) {
		args := []string{one}
		if two != "" {
			args = append(args, two)
		}
		paths, err := subgroupPaths(args)
		if err != nil {
			return
		}
		for controller, p := range paths {
			if controller == "" && (len(paths) > 1 || p != one) || strings.ContainsAny(controller, ",:") {
				t.Fatalf("%q: %q", args, paths)
			}
		}
	})
}

func FuzzSpec(f *testing.F) {
	f.Add([]byte(`{"ociVersion": "1.0.0", "process": {"args": ["x"]}, "root": {"path": "rootfs"}, "linux": {"cgroupsPath": "a"}}`))
	f.Add([]byte(`{"root": null, "windows": {"layerFolders": 3}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := decodeSpec("fuzz", data)
		if err == nil {
			checkSpec(t.TempDir(), s, &CreateOptions{})
		}
	})
}

func TestCheckID(t *testing.T) {
	for id, ok := range map[string]bool{"a": true, "a.b_c+d-E9": true, "": false, ".": false, "..": false, "a/b": false, "a b": false, "ä": false,
		strings.Repeat("x", 255): true, strings.Repeat("x", 256): false, "a\x00": false} {
		if err := checkID(id); (err == nil) != ok {
			t.Errorf("%q: %v", id, err)
		}
	}
}
