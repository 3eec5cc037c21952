package pod

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

const (
	passwd = "# users\nroot:x:0:0:root:/root:/bin/sh\n\nbroken:x\napp:x:1000:1001:App:/home/app:/bin/sh\n1002:x:0:0:trap:/root:/bin/sh\nodd:x:4294967295:0::/:\n"
	group  = "root:x:0:\nstaff:x:50:root,app\nwheel:x:60:app\nother:x:70:apple\n1003:x:0:app2\n"
)

// layer makes a directory of a layer: a value starting with "->" is a symlink's
// target, "!" is a whiteout, "/" a directory and "/opaque" an opaque one.
func layer(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		p, v := filepath.Join(dir, files[i]), files[i+1]
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch to, link := strings.CutPrefix(v, "->"); {
		case link:
			err = os.Symlink(to, p)
		case v == "!":
			if err = unix.Mknod(p, unix.S_IFCHR, 0); errors.Is(err, unix.EPERM) {
				t.Skip("this user may not make whiteouts")
			}
		case v == "|":
			err = unix.Mkfifo(p, 0o644)
		case v == "/" || v == "/opaque":
			if err = os.MkdirAll(p, 0o755); err == nil && v == "/opaque" {
				if err = unix.Setxattr(p, "trusted.overlay.opaque", []byte("y"), 0); errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTSUP) {
					t.Skip("no opaque directories here")
				}
			}
		default:
			err = os.WriteFile(p, []byte(v), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLookupUser(t *testing.T) {
	layers := []string{layer(t, "bin/sh", ""), layer(t, "etc/passwd", passwd, "etc/group", group)}
	for _, tt := range []struct {
		user string
		want identity
		err  string
	}{
		{"", identity{0, 0, []uint32{50}, "/root"}, ""},
		{"0", identity{0, 0, []uint32{50}, "/root"}, ""},
		{"app", identity{1000, 1001, []uint32{50, 60}, "/home/app"}, ""},
		{"1000", identity{1000, 1001, []uint32{50, 60}, "/home/app"}, ""},
		{"01000", identity{1000, 1001, []uint32{50, 60}, "/home/app"}, ""},
		{"2000", identity{uid: 2000}, ""},
		{"2000:2001", identity{uid: 2000, gid: 2001}, ""},
		{"app:wheel", identity{1000, 60, nil, "/home/app"}, ""},
		{"app:5", identity{1000, 5, nil, "/home/app"}, ""},
		{"app:", identity{1000, 1001, []uint32{50, 60}, "/home/app"}, ""},
		{":wheel", identity{0, 60, nil, "/root"}, ""},
		// Numbers are never names.
		{"1002", identity{uid: 1002}, ""},
		{"app:1003", identity{1000, 1003, nil, "/home/app"}, ""},
		{"nobody", identity{}, `"nobody" is not in its /etc/passwd`},
		{"broken", identity{}, `"broken" is not in its /etc/passwd`},
		{"odd", identity{}, `"odd" is not in its /etc/passwd`},
		{"4294967295", identity{}, "is not in its /etc/passwd"},
		{"-1", identity{}, "is not in its /etc/passwd"},
		{"app:none", identity{}, `"none" is not in its /etc/group`},
	} {
		id, err := lookupUser(layers, tt.user)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) || !errors.Is(err, errs.Invalid) {
				t.Errorf("%q: %+v, %v", tt.user, id, err)
			}
		} else if err != nil || !reflect.DeepEqual(id, tt.want) {
			t.Errorf("%q: %+v, %v; want %+v", tt.user, id, err, tt.want)
		}
	}
	if id, err := lookupUser(nil, "7:8"); err != nil || id.uid != 7 || id.gid != 8 {
		t.Errorf("without layers: %+v, %v", id, err)
	}
}

// What the container will see through its overlay is what its user is looked up in.
func TestLookupUserLayers(t *testing.T) {
	const seven, eight = "app:x:7:7::/:\n", "app:x:8:8::/:\n"
	secret := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(secret, []byte("app:x:666:666::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 30)
	base := []string{"etc/passwd", seven}
	for name, tt := range map[string]struct {
		layers [][]string // topmost first
		want   uint32     // 0: not found
	}{
		"topmost":                 {[][]string{{"etc/passwd", eight}, base}, 8},
		"below":                   {[][]string{{"etc/hosts", ""}, base}, 7},
		"whiteout":                {[][]string{{"etc/passwd", "!"}, base}, 0},
		"whiteout of directory":   {[][]string{{"etc", "!"}, base}, 0},
		"file over directory":     {[][]string{{"etc", "x"}, base}, 0},
		"opaque":                  {[][]string{{"etc", "/opaque"}, base}, 0},
		"opaque, with file":       {[][]string{{"etc", "/opaque", "etc/passwd", eight}, base}, 8},
		"directory over file":     {[][]string{{"etc", "/"}, {"etc", "x"}, base}, 0},
		"above a whiteout":        {[][]string{{"etc/passwd", eight}, {"etc", "!"}, base}, 8},
		"pipe":                    {[][]string{{"etc/passwd", "|"}, base}, 0},
		"directory":               {[][]string{{"etc/passwd", "/"}, base}, 0},
		"link":                    {[][]string{{"etc/passwd", "->p", "etc/p", eight}, base}, 8},
		"link to another layer":   {[][]string{{"etc/passwd", "->/usr/p"}, {"usr/p", eight}, base}, 8},
		"link of directory":       {[][]string{{"etc", "->usr/etc"}, {"usr/etc/passwd", eight}, base}, 8},
		"link to nothing":         {[][]string{{"etc/passwd", "->/none"}, base}, 0},
		"loop":                    {[][]string{{"etc/passwd", "->passwd"}, base}, 0},
		"absolute link out":       {[][]string{{"etc/passwd", "->" + secret}, base}, 0},
		"relative link out":       {[][]string{{"etc/passwd", "->" + up + secret}, base}, 0},
		"directory link out":      {[][]string{{"etc", "->" + filepath.Dir(secret)}, base}, 0},
		"link up stays in image":  {[][]string{{"etc/passwd", "->" + up + "usr/p"}, {"usr/p", eight}, base}, 8},
		"magic link":              {[][]string{{"etc", "->/proc/self/root/etc"}, base}, 0},
		"larger than is believed": {[][]string{{"etc/passwd", strings.Repeat("#\n", maxDatabase/2) + eight}}, 0},
		"long line":               {[][]string{{"etc/passwd", "#" + strings.Repeat("x", 100_000) + "\n" + eight}}, 8},
	} {
		t.Run(name, func(t *testing.T) {
			var layers []string
			for _, l := range tt.layers {
				layers = append(layers, layer(t, l...))
			}
			id, err := lookupUser(layers, "app")
			if tt.want == 0 {
				if !errors.Is(err, errs.Invalid) {
					t.Errorf("%+v, %v", id, err)
				}
			} else if err != nil || id.uid != tt.want {
				t.Errorf("%+v, %v; want %d", id, err, tt.want)
			}
		})
	}
	fds := func() int {
		l, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		return len(l)
	}
	l := []string{layer(t, base...), layer(t, "etc/group", group)}
	before := fds()
	for range 20 {
		if _, err := lookupUser(l, "app"); err != nil {
			t.Fatal(err)
		}
	}
	if after := fds(); after > before+5 {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
