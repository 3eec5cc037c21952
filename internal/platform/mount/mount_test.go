package mount

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	got, err := Parse(strings.NewReader(
		`36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
30 25 0:27 / /with\040space\134and\011tab ro - tmpfs none rw
31 25 0:28 / /dash rw shared:2 master:3 - overlay overlay rw,lowerdir=/a:/b
`))
	want := []Info{
		{36, 35, 98, 0, "/mnt1", "/mnt2", "rw,noatime", "master:1", "ext3", "/dev/root", "rw,errors=continue"},
		{30, 25, 0, 27, "/", "/with space\\and\ttab", "ro", "", "tmpfs", "none", "rw"},
		{31, 25, 0, 28, "/", "/dash", "rw", "shared:2 master:3", "overlay", "overlay", "rw,lowerdir=/a:/b"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("Parse:\n%+v, %v\nwant\n%+v", got, err, want)
	}
	if got[0].ReadOnly() || !got[1].ReadOnly() {
		t.Error("ReadOnly")
	}
	for _, bad := range []string{"x", "36 35 98:0 / / rw", "36 35 98 / / rw - a b c", "a 35 98:0 / / rw - a b c"} {
		if _, err := Parse(strings.NewReader(bad)); err == nil {
			t.Errorf("Parse(%q) succeeded", bad)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`36 35 98:0 /mnt1 /mnt2\040 rw,noatime master:1 - ext3 /dev/root rw`)
	f.Fuzz(func(t *testing.T, s string) { Parse(strings.NewReader(s)) })
}

func TestMounts(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	t.Cleanup(func() {
		if all, _ := Below(dir); len(all) > 0 {
			t.Errorf("left: %+v", all)
		}
	})
	at := filepath.Join(dir, "a b")
	inner := filepath.Join(at, "inner")
	tmpfs := func(path string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(path, 0o700), unix.Mount("none", path, "tmpfs", 0, "")); err != nil {
			t.Fatal(err)
		}
	}
	is := func(path string, want bool) {
		t.Helper()
		if got, err := IsMounted(path); err != nil || got != want {
			t.Errorf("IsMounted(%s) = %v, %v", path, got, err)
		}
	}
	is(at, false)
	tmpfs(at)
	tmpfs(inner)
	tmpfs(inner) // stacked
	is(at, true)
	is(inner, true)
	if err := os.Mkdir(filepath.Join(at, "dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	is(filepath.Join(at, "dir"), false)
	bound := filepath.Join(at, "dir")
	if err := unix.Mount(bound, bound, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	is(bound, true) // the same filesystem on both sides
	link := filepath.Join(dir, "link")
	if err := os.Symlink(at, link); err != nil {
		t.Fatal(err)
	}
	is(link, false)
	if all, err := Below(link); err != nil || len(all) != 4 || all[3].Point != at {
		t.Errorf("Below: %+v, %v", all, err)
	}
	if m, ok, err := At(inner); err != nil || !ok || m.Type != "tmpfs" {
		t.Errorf("At: %+v, %v, %v", m, ok, err)
	}
	if err := Unmount(ctx, link, 0); err != nil {
		t.Errorf("Unmount of a symlink: %v", err)
	}
	is(at, true)

	write := filepath.Join(inner, "data")
	if err := os.WriteFile(write, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := RemoveTree(dir); !errors.Is(err, errs.InUse) {
		t.Errorf("remove a tree with mounts in it: %v", err)
	}
	if _, err := os.Stat(write); err != nil {
		t.Errorf("what was mounted there: %v", err)
	}

	// Busy: by what is mounted in it, then by a process.
	if err := Unmount(ctx, at, 0); !errors.Is(err, errs.InUse) {
		t.Errorf("unmount with mounts inside: %v", err)
	}
	if err := errors.Join(Unmount(ctx, inner, time.Second), Unmount(ctx, bound, time.Second)); err != nil {
		t.Error(err)
	}
	is(inner, false) // both that were stacked
	f, err := os.Create(filepath.Join(at, "open"))
	if err != nil {
		t.Fatal(err)
	}
	if err := Unmount(ctx, at, 10*time.Millisecond); !errors.Is(err, errs.InUse) || !strings.Contains(err.Error(), "mount.test") {
		t.Errorf("unmount with an open file: %v", err)
	}
	// It is let go while somebody waits for it.
	defer time.AfterFunc(50*time.Millisecond, func() { f.Close() }).Stop()
	if err := Unmount(ctx, at, 10*time.Second); err != nil {
		t.Error(err)
	}
	is(at, false)
	if err := errors.Join(Unmount(ctx, at, 0), Unmount(ctx, filepath.Join(dir, "none"), 0), Detach(at)); err != nil {
		t.Errorf("unmount of what is not mounted: %v", err)
	}

	// Everything goes, even what is busy, and the error tells.
	tmpfs(at)
	tmpfs(inner)
	inside, err := os.Create(filepath.Join(inner, "open"))
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	if err := UnmountBelow(ctx, dir, 10*time.Millisecond); !errors.Is(err, errs.InUse) || !strings.Contains(err.Error(), inner) {
		t.Errorf("UnmountBelow with an open file: %v", err)
	}
	is(at, false)
	if err := errors.Join(UnmountBelow(ctx, dir, 0), RemoveTree(at), RemoveTree(at)); err != nil {
		t.Error(err)
	}
}

func TestTrim(t *testing.T) {
	if _, err := Trim("/proc"); err == nil {
		t.Error("/proc was trimmed")
	}
}
