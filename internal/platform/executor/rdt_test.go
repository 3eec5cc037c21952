package executor

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// TestIntelRDT: what is made and written, in a directory in place of resctrl, which few
// machines have.
func TestIntelRDT(t *testing.T) {
	for name, tt := range map[string]struct {
		r        specs.LinuxIntelRdt
		exists   string // schemata of the class, "" for no class
		kind     *errs.Kind
		schemata string
		dir      string
		left     bool // the class outlives the container
	}{
		"own class":           {r: specs.LinuxIntelRdt{L3CacheSchema: "L3:0=f", MemBwSchema: "MB:0=20", Schemata: []string{"L2:0=3"}}, schemata: "L3:0=f\nMB:0=20\nL2:0=3\n", dir: "ctr"},
		"own class, plain":    {dir: "ctr"},
		"named, new":          {r: specs.LinuxIntelRdt{ClosID: "gold", Schemata: []string{"L3:0=f"}}, schemata: "L3:0=f\n", dir: "gold", left: true},
		"named, there":        {r: specs.LinuxIntelRdt{ClosID: "gold"}, exists: "    L3:0=7ff\n", schemata: "    L3:0=7ff\n", dir: "gold", left: true},
		"named, the same":     {r: specs.LinuxIntelRdt{ClosID: "gold", L3CacheSchema: "L3:1=0FF"}, exists: "    MB:0=100;1=100\n    L3:0=7ff;1=ff\n", schemata: "    MB:0=100;1=100\n    L3:0=7ff;1=ff\n", dir: "gold", left: true},
		"named, another":      {r: specs.LinuxIntelRdt{ClosID: "gold", L3CacheSchema: "L3:0=f"}, exists: "L3:0=7ff\n", kind: errs.Invalid},
		"named, not there":    {r: specs.LinuxIntelRdt{ClosID: "gold"}, kind: errs.NotFound},
		"root":                {r: specs.LinuxIntelRdt{ClosID: "/", EnableMonitoring: true}, dir: ".", left: true},
		"monitoring":          {r: specs.LinuxIntelRdt{EnableMonitoring: true}, dir: "ctr"},
		"outside":             {r: specs.LinuxIntelRdt{ClosID: "../x"}, kind: errs.Invalid},
		"resctrl's own":       {r: specs.LinuxIntelRdt{ClosID: "info"}, kind: errs.Invalid},
		"bandwidth, no MB":    {r: specs.LinuxIntelRdt{MemBwSchema: "L3:0=1"}, kind: errs.Invalid},
		"schemata, two lines": {r: specs.LinuxIntelRdt{Schemata: []string{"L3:0=1\nMB:0=1"}}, kind: errs.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			os.Mkdir(root+"/mon_groups", 0o755)
			if tt.exists != "" {
				os.Mkdir(root+"/gold", 0o755)
				os.WriteFile(root+"/gold/schemata", []byte(tt.exists), 0o644)
			}
			c, err := newRDT(root, "ctr", &tt.r)
			if err == nil {
				if tt.r.EnableMonitoring && c.dir != root {
					os.MkdirAll(c.dir+"/mon_groups", 0o755) // the kernel makes it
				}
				err = c.prepare()
			}
			if tt.kind != nil {
				if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), "linux.intelRdt") {
					t.Errorf("got %v, want %v", err, tt.kind)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := c.assign(77); err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(root, tt.dir)
			if got, _ := os.ReadFile(dir + "/schemata"); string(got) != tt.schemata {
				t.Errorf("schemata is %q, want %q", got, tt.schemata)
			}
			if got, _ := os.ReadFile(dir + "/tasks"); string(got) != "77" {
				t.Errorf("tasks is %q", got)
			}
			if c.monitor != "" {
				if got, _ := os.ReadFile(dir + "/mon_groups/ctr/tasks"); string(got) != "77" {
					t.Errorf("tasks of the monitoring group is %q", got)
				}
				os.Remove(dir + "/mon_groups/ctr/tasks") // as the kernel does with the group
				os.Remove(dir + "/mon_groups/ctr")
				if dir != root {
					os.Remove(dir + "/mon_groups")
				}
			}
			os.Remove(dir + "/tasks")
			if !tt.left {
				os.Remove(dir + "/schemata")
			}
			if err := c.remove(); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(dir); (err == nil) != tt.left {
				t.Errorf("the class after the container: %v", err)
			}
		})
	}
	// Without the filesystem nothing starts.
	if _, err := resctrl(); errors.Is(err, errs.Unsupported) {
		s := spec("true")
		s.Linux.IntelRdt = &specs.LinuxIntelRdt{}
		if _, err := shared.Create(contextT(t), Config{ID: "x", Spec: s, Rootfs: Rootfs{Dir: "/nowhere"}}); !errors.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "linux.intelRdt: no resctrl filesystem is mounted") {
			t.Errorf("got %v", err)
		}
		if err := RemoveClass("x", s.Linux.IntelRdt); err != nil {
			t.Error(err)
		}
	}
}

// TestUpdateClass: as above, and what cannot be is refused with nothing written.
func TestUpdateClass(t *testing.T) {
	for name, tt := range map[string]struct {
		r             specs.LinuxIntelRdt
		l3, bandwidth string
		kind          *errs.Kind
		written       string
	}{
		"caches":                 {l3: "L3:0=3", written: "L3:0=3\n"},
		"both":                   {l3: "L3:0=3", bandwidth: "MB:0=10", written: "L3:0=3\nMB:0=10\n"},
		"named":                  {r: specs.LinuxIntelRdt{ClosID: "gold"}, bandwidth: "MB:0=10", written: "MB:0=10\n"},
		"bandwidth, not one":     {bandwidth: "L3:0=3", kind: errs.Invalid},
		"two lines":              {l3: "L3:0=3\nMB:0=1", kind: errs.Invalid},
		"class not there":        {r: specs.LinuxIntelRdt{ClosID: "silver"}, l3: "L3:0=3", kind: errs.NotFound},
		"outside":                {r: specs.LinuxIntelRdt{ClosID: "../gold"}, l3: "L3:0=3", kind: errs.Invalid},
		"kernel without a limit": {r: specs.LinuxIntelRdt{ClosID: "bare"}, bandwidth: "MB:0=10", kind: errs.Unsupported},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for _, dir := range []string{"ctr", "gold", "bare", "info/L3", "info/MB"} {
				os.MkdirAll(root+"/"+dir, 0o755)
			}
			if tt.r.ClosID == "bare" {
				os.Remove(root + "/info/MB")
			}
			const before = "L3:0=f\n"
			for _, dir := range []string{"ctr", "gold", "bare"} {
				os.WriteFile(root+"/"+dir+"/schemata", []byte(before), 0o644)
			}
			dir := root + "/ctr"
			if tt.r.ClosID != "" {
				dir = filepath.Join(root, tt.r.ClosID)
			}
			undo, err := updateClass(root, "ctr", &tt.r, tt.l3, tt.bandwidth)
			if tt.kind != nil {
				if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), "linux.intelRdt") {
					t.Errorf("got %v, want %v", err, tt.kind)
				}
				tt.written = before
				if tt.kind != errs.Unsupported {
					return
				}
			} else if err != nil {
				t.Fatal(err)
			}
			// A file keeps what is behind a shorter text; resctrl takes each write for itself.
			if got, _ := os.ReadFile(dir + "/schemata"); !strings.HasPrefix(string(got), strings.TrimSpace(tt.written)) {
				t.Errorf("schemata is %q, want %q", got, tt.written)
			}
			if undo != nil {
				if err := undo(); err != nil {
					t.Fatal(err)
				}
				if got, _ := os.ReadFile(dir + "/schemata"); !strings.HasPrefix(string(got), before) {
					t.Errorf("schemata after the undo is %q", got)
				}
			}
		})
	}
	if _, err := UpdateClass("x", nil, "L3:0=f", ""); !errors.Is(err, errs.FailedPrecondition) {
		t.Errorf("without a class: %v", err)
	}
}
