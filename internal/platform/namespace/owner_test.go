package namespace

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

func mapped(first uint32) *IDMaps {
	m := []specs.LinuxIDMapping{{HostID: first, Size: 1000}}
	return &IDMaps{UIDs: m, GIDs: m}
}

// owner is the inode of the user namespace that a pinned namespace belongs to.
func owner(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestPinOwned(t *testing.T) {
	dir := place(t)
	all := []Kind{Net, IPC, UTS}
	o := Options{Hostname: "owned", Users: mapped(300000), Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shm_rmid_forced": "1"}}
	if err := Pin(dir, all, o); err != nil {
		t.Fatal(err)
	}
	user := inode(t, filepath.Join(dir, "user"))
	if user == inode(t, "/proc/self/ns/user") {
		t.Error("the user namespace is the host's")
	}
	for _, k := range all {
		if got := owner(t, filepath.Join(dir, string(k))); got != user {
			t.Errorf("%s belongs to user namespace %d, want %d", k, got, user)
		}
	}
	inside(t, dir, all, func() error {
		for path, want := range map[string]string{
			"/proc/sys/kernel/hostname": "owned", "/proc/sys/net/ipv4/ip_unprivileged_port_start": "80", "/proc/sys/kernel/shm_rmid_forced": "1",
		} {
			if got, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(got)) != want {
				t.Errorf("%s is %q, %v, want %s", path, got, err, want)
			}
		}
		return nil
	})
	if err := Pin(dir, all, o); err != nil {
		t.Fatal(err)
	}
	if inode(t, filepath.Join(dir, "user")) != user {
		t.Error("it was made again")
	}
	// Where one is missing all are made anew: they belong together.
	if err := unmount(filepath.Join(dir, "user")); err != nil {
		t.Fatal(err)
	}
	if err := Pin(dir, all, o); err != nil {
		t.Fatal(err)
	}
	if user = inode(t, filepath.Join(dir, "user")); owner(t, filepath.Join(dir, "net")) != user {
		t.Error("the network namespace belongs to a user namespace that is not pinned")
	}
	if err := Unpin(dir); err != nil {
		t.Fatal(err)
	}

	none := mapped(300000)
	none.GIDs[0].ContainerID = 1
	if err := Pin(place(t), all, Options{Users: none}); !errors.Is(err, errs.Invalid) {
		t.Errorf("without user 0: %v", err)
	}
	twice := mapped(300000)
	twice.UIDs = append(twice.UIDs, specs.LinuxIDMapping{HostID: 1, Size: 10})
	if err := Pin(place(t), all, Options{Users: twice}); !errors.Is(err, errs.Invalid) {
		t.Errorf("ranges that overlap: %v", err)
	}
}

func BenchmarkPinOwned(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "orlop-ns-test-")
	for b.Loop() {
		if err := Pin(dir, []Kind{Net, IPC, UTS}, Options{Hostname: "a", Users: mapped(300000)}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := Unpin(dir); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// Ids in and out, and whose ranges meet.
func TestIDMaps(t *testing.T) {
	m := mapped(5000)
	if uid, gid, err := m.Outside(0, 999); uid != 5000 || gid != 5999 || err != nil {
		t.Errorf("outside: %d:%d %v", uid, gid, err)
	}
	for _, bad := range [][2]int{{1000, 0}, {0, 1000}, {-1, 0}} {
		if _, _, err := m.Outside(bad[0], bad[1]); !errors.Is(err, errs.Invalid) {
			t.Errorf("outside of %v: %v", bad, err)
		}
	}
	if uid, gid := m.Inside(5999, 5000); uid != 999 || gid != 0 {
		t.Errorf("inside: %d:%d", uid, gid)
	}
	if uid, gid := m.Inside(6000, 0); uid != 65534 || gid != 65534 {
		t.Errorf("inside, of ids that are not mapped: %d:%d", uid, gid)
	}
	for first, want := range map[uint32]bool{4000: false, 4001: true, 5000: true, 5999: true, 6000: false, 1<<32 - 1: false} {
		if got := m.Overlaps(mapped(first)); got != want {
			t.Errorf("overlaps with 1000 ids from %d: %v", first, got)
		}
	}
}

// On an id-mapped mount files are the namespace's root's, or are not made at all.
func TestAsRoot(t *testing.T) {
	m := mapped(70000)
	dir := t.TempDir()
	err := m.AsRoot(func() error {
		// The directory is the host's root's alone: capabilities are as they were.
		return os.WriteFile(filepath.Join(dir, "made"), nil, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "made"), &st); err != nil || st.Uid != 70000 || st.Gid != 70000 {
		t.Errorf("made by %d:%d, %v", st.Uid, st.Gid, err)
	}
	failed := errors.New("failed")
	if err := m.AsRoot(func() error { return failed }); !errors.Is(err, failed) {
		t.Errorf("an error of what it runs: %v", err)
	}
	// Whichever thread comes next is itself again.
	for range 20 {
		done := make(chan error)
		go func() { done <- os.WriteFile(filepath.Join(dir, "after"), nil, 0o600) }()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if err := unix.Stat(filepath.Join(dir, "after"), &st); err != nil || st.Uid != 0 || st.Gid != 0 {
			t.Errorf("afterwards made by %d:%d, %v", st.Uid, st.Gid, err)
		}
		os.Remove(filepath.Join(dir, "after"))
	}
	if err := (*IDMaps)(nil).AsRoot(func() error { return nil }); err != nil {
		t.Error(err)
	}
}
