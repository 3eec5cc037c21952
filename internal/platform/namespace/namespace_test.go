package namespace

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if data, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(data), "/orlop-ns-test-") {
		fmt.Fprintln(os.Stderr, "the tests left mounts behind")
		code = 1
	}
	os.Exit(code)
}

func place(t *testing.T) string {
	dir := filepath.Join(t.TempDir(), "orlop-ns-test-", "ns")
	t.Cleanup(func() {
		if err := Unpin(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// inside runs fn in the pinned namespaces of all kinds.
func inside(t *testing.T, dir string, kinds []Kind, fn func() error) {
	t.Helper()
	err := OnThread(func() error {
		for _, k := range kinds {
			f, err := os.Open(filepath.Join(dir, string(k)))
			if err != nil {
				return err
			}
			err = unix.Setns(int(f.Fd()), flags[k])
			f.Close()
			if err != nil {
				return err
			}
		}
		return fn()
	})
	if err != nil {
		t.Error(err)
	}
}

func TestPin(t *testing.T) {
	dir := place(t)
	all := []Kind{Net, IPC, UTS}
	o := Options{Hostname: "pinned", Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shm_rmid_forced": "1"}}
	host, _ := os.Hostname()
	if err := Pin(dir, all, o); err != nil {
		t.Fatal(err)
	}
	ids := map[Kind]uint64{}
	for _, k := range all {
		ids[k] = inode(t, filepath.Join(dir, string(k)))
		if ids[k] == inode(t, "/proc/self/ns/"+string(k)) {
			t.Errorf("%s is the host's", k)
		}
	}
	inside(t, dir, all, func() error {
		for path, want := range map[string]string{
			"/proc/sys/kernel/hostname": "pinned", "/proc/sys/net/ipv4/ip_unprivileged_port_start": "80", "/proc/sys/kernel/shm_rmid_forced": "1",
		} {
			if got, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(got)) != want {
				t.Errorf("%s is %q, %v, want %s", path, got, err, want)
			}
		}
		return nil
	})
	if now, _ := os.Hostname(); now != host {
		t.Errorf("the host's name became %q", now)
	}
	// Again, with other options: what is there is kept.
	if err := Pin(dir, all, Options{Hostname: "other"}); err != nil {
		t.Fatal(err)
	}
	for _, k := range all {
		if inode(t, filepath.Join(dir, string(k))) != ids[k] {
			t.Errorf("%s was made again", k)
		}
	}
	// One that a crash has left without its mount is made; the others are kept.
	if err := unmount(filepath.Join(dir, "uts")); err != nil {
		t.Fatal(err)
	}
	if err := Pin(dir, all, Options{Hostname: "other"}); err != nil {
		t.Fatal(err)
	}
	if inode(t, filepath.Join(dir, "net")) != ids[Net] {
		t.Error("the network namespace was made again")
	}
	inside(t, dir, []Kind{UTS}, func() error {
		if name, _ := os.ReadFile("/proc/sys/kernel/hostname"); string(name) != "other\n" {
			t.Errorf("the host name in the new namespace is %q", name)
		}
		return nil
	})
	for range 2 {
		if err := Unpin(dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Error("the directory is still there")
	}
}

func TestPinInvalid(t *testing.T) {
	for name, o := range map[string]Options{
		"host's sysctl":  {Sysctls: map[string]string{"kernel.pid_max": "100"}},
		"sysctl upwards": {Sysctls: map[string]string{"net/../kernel/pid_max": "100"}},
		"other's sysctl": {Sysctls: map[string]string{"kernel.shmmax": "100"}},
		"way out":        {Sysctls: map[string]string{"net/../kernel/pid_max": "100"}},
		"long name":      {Hostname: strings.Repeat("x", 65)},
	} {
		dir := filepath.Join(t.TempDir(), "ns")
		if err := Pin(dir, []Kind{Net}, o); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v, want an error of the kind invalid", name, err)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s: something was made", name)
		}
	}
	dir := place(t)
	if err := Pin(dir, []Kind{Net}, Options{Sysctls: map[string]string{"net.ipv4.no_such": "1"}}); !errors.Is(err, errs.Unsupported) {
		t.Errorf("sysctl that does not exist: %v", err)
	}
	if pinned, _ := Pinned(filepath.Join(dir, "net")); pinned {
		t.Error("a namespace that is not complete was pinned")
	}
	if err := Pin(dir, []Kind{PID}, Options{}); !errors.Is(err, errs.Invalid) {
		t.Errorf("PID namespace: %v", err)
	}
}

func TestDo(t *testing.T) {
	dir := place(t)
	if err := Pin(dir, []Kind{Net}, Options{}); err != nil {
		t.Fatal(err)
	}
	home := inode(t, "/proc/self/ns/net")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			err := Do(filepath.Join(dir, "net"), func() error {
				list, err := net.Interfaces()
				if err == nil && (len(list) != 1 || list[0].Name != "lo" || list[0].Flags&net.FlagUp == 0) {
					err = fmt.Errorf("interfaces inside are %v", list)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
			var st unix.Stat_t
			if unix.Stat("/proc/thread-self/ns/net", &st); st.Ino != home {
				t.Error("a thread of the pool stayed in the namespace")
			}
		})
	}
	wg.Wait()
	want := errors.New("mine")
	if err := Do(filepath.Join(dir, "net"), func() error { return want }); err != want {
		t.Errorf("got %v", err)
	}
	if err := Do(filepath.Join(dir, "none"), func() error { return nil }); !errors.Is(err, errs.NotFound) {
		t.Errorf("namespace that does not exist: %v", err)
	}
}

func TestPinProcess(t *testing.T) {
	dir := place(t)
	for range 2 {
		if err := PinProcess(dir, os.Getpid()); err != nil {
			t.Fatal(err)
		}
	}
	if inode(t, filepath.Join(dir, "pid")) != inode(t, "/proc/self/ns/pid") {
		t.Error("another namespace is pinned")
	}
	if err := Unpin(dir); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkPin(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "orlop-ns-test-")
	for b.Loop() {
		if err := Pin(dir, []Kind{Net, IPC, UTS}, Options{Hostname: "a"}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := Unpin(dir); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
