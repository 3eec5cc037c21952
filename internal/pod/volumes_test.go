package pod

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// shown returns what a container sees in a directory of configuration: path=content.
func shown(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if strings.HasPrefix(rel, "..") {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if fi, err := os.Stat(path); err == nil && fi.IsDir() && d.Type()&fs.ModeSymlink != 0 {
			for _, s := range shown(t, path+"/") {
				list = append(list, rel+"/"+s)
			}
		} else if err == nil && !fi.IsDir() {
			b, _ := os.ReadFile(path)
			list = append(list, rel+"="+string(b))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

func TestWriteFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "v")
	f := func(s string) file { return file{[]byte(s), 0o640} }
	for _, tt := range []struct {
		name  string
		files map[string]file
		want  string
	}{
		{"first", map[string]file{"a": f("1"), "sub/b": f("2")}, "a=1 sub/b=2"},
		{"again", map[string]file{"a": f("1"), "sub/b": f("2")}, "a=1 sub/b=2"},
		{"changed", map[string]file{"a": f("3"), "sub/b": f("2")}, "a=3 sub/b=2"},
		{"one goes, one comes", map[string]file{"c": f("4"), "sub/deep/d": f("5")}, "c=4 sub/deep/d=5"},
		{"none", nil, ""},
		{"back", map[string]file{"a": f("6")}, "a=6"},
	} {
		before, _ := os.Readlink(filepath.Join(dir, "..data"))
		if err := writeFiles(dir, tt.files, -1); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if got := strings.Join(shown(t, dir), " "); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
		if after, _ := os.Readlink(filepath.Join(dir, "..data")); (after == before) != (tt.name == "again") {
			t.Errorf("%s: written anew: %v", tt.name, after != before)
		}
		ents, _ := os.ReadDir(dir) // no generation before is left
		hidden := slices.DeleteFunc(ents, func(e os.DirEntry) bool { return !strings.HasPrefix(e.Name(), "..") })
		if len(hidden) != 2 {
			t.Errorf("%s: %v", tt.name, hidden)
		}
	}
	if fi, err := os.Stat(filepath.Join(dir, "a")); err != nil || fi.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", fi, err)
	}
	if err := writeFiles(dir, map[string]file{"a": {[]byte("7"), 0o600}}, 2000); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "a"), &st); err != nil || st.Gid != 2000 || st.Mode&0o777 != 0o640 {
		t.Errorf("with a group: %+v, %v", st, err)
	}
	for _, bad := range []string{"../x", "/x", "a/../../x", "..data/x", ""} {
		if err := writeFiles(dir, map[string]file{bad: f("x")}, -1); !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// A reader sees one generation or the other, whole, never a mixture and never nothing.
func TestWriteFilesAtOneMoment(t *testing.T) {
	dir := t.TempDir()
	generation := func(s string) map[string]file {
		return map[string]file{"a": {[]byte(s), 0o644}, "b": {[]byte(s), 0o644}}
	}
	if err := writeFiles(dir, generation("0"), -1); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			// The directory by which both are seen is looked up once, as a careful reader does.
			data, err := os.OpenRoot(filepath.Join(dir, "..data"))
			if err != nil {
				continue // replaced between reading the link and opening
			}
			a, aerr := data.ReadFile("a")
			b, berr := data.ReadFile("b")
			data.Close()
			if aerr == nil && berr == nil && string(a) != string(b) {
				t.Errorf("a of %s with b of %s", a, b)
				return
			}
			if a, err := os.ReadFile(filepath.Join(dir, "a")); err == nil && len(a) == 0 {
				t.Error("a file that is half written is seen")
				return
			}
		}
	})
	for i := range 200 {
		if err := writeFiles(dir, generation(itoa(int64(i))), -1); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
}

func TestMakeOpen(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	dir := filepath.Join(t.TempDir(), "volumes", "v")
	for _, want := range []os.FileMode{0o777, 0o777} {
		if err := makeOpen(dir); err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%v, %v", fi, err)
		}
	}
	if err := os.Chmod(dir, 0o700); err != nil { // a container did it
		t.Fatal(err)
	}
	if err := makeOpen(dir); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("the mode that a container gave is gone: %v, %v", fi, err)
	}
}

func TestCheckHostPath(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(at("file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: at("socket")}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path, kind string
		made       string // what is there afterwards
		bad        bool
	}{
		{"file", "", "file", false}, {"file", "File", "file", false}, {"file", "Directory", "file", true}, {"file", "FileOrCreate", "file", false},
		{"file", "DirectoryOrCreate", "file", true}, {"file", "Socket", "file", true}, {"socket", "Socket", "", false}, {"socket", "File", "", true},
		{".", "Directory", "dir", false}, {".", "File", "dir", true}, {".", "FileOrCreate", "dir", true},
		{"no1", "Directory", "", true}, {"no1", "File", "", true}, {"no1", "Socket", "", true}, {"no1", "BlockDevice", "", true}, {"no1", "CharDevice", "", true},
		{"new1", "", "dir", false}, {"new2/x", "DirectoryOrCreate", "dir", false}, {"new3", "FileOrCreate", "file", false},
		{"/dev/null", "CharDevice", "", false}, {"/dev/null", "BlockDevice", "", true}, {"file", "Sock", "file", true},
	} {
		path := tt.path
		if !filepath.IsAbs(path) {
			path = at(path)
		}
		if err := checkHostPath(&HostPath{Path: path, Type: tt.kind}); (err != nil) != tt.bad {
			t.Errorf("%+v: %v", tt, err)
		}
		if fi, err := os.Stat(path); tt.made != "" && (err != nil || fi.IsDir() != (tt.made == "dir")) {
			t.Errorf("%+v: %v, %v", tt, fi, err)
		}
	}
	if _, err := os.Lstat(at("no1")); err == nil {
		t.Error("what must be there was made")
	}
}
