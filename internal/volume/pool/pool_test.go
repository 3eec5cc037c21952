package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/google/uuid"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/loop"
	"github.com/orlop-io/orlop/internal/platform/mount"
	"github.com/orlop-io/orlop/internal/platform/xfs"
	"github.com/orlop-io/orlop/internal/volume/engine"
	"github.com/orlop-io/orlop/internal/volume/engine/enginetest"
	"golang.org/x/sys/unix"
)

const mib = 1 << 20

// options are those of a pool below dir, torn down at the end of the test.
func options(t *testing.T, dir string, kind Kind) Options {
	t.Helper()
	o := Options{Dir: filepath.Join(dir, "dir"), Run: filepath.Join(dir, "run"), Kind: kind, SizeBytes: 512 * mib}
	t.Cleanup(func() {
		if err := Teardown(context.Background(), o.Dir, o.Run); err != nil {
			t.Error(err)
		}
		all, err := loop.List(func(backing string) bool {
			return strings.HasPrefix(backing, o.Dir) || strings.HasPrefix(backing, o.Run)
		})
		if err != nil || len(all) > 0 {
			t.Errorf("devices left: %+v, %v", all, err)
		}
		if m, err := mount.Below(o.Run); err != nil || len(m) > 0 {
			t.Errorf("mounts left: %+v, %v", m, err)
		}
	})
	return o
}

func open(t *testing.T, o Options) *Pool {
	t.Helper()
	p, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestConformance(t *testing.T) {
	t.Run("image", func(t *testing.T) {
		o := options(t, t.TempDir(), Image)
		enginetest.Run(t, func(t *testing.T) engine.Engine { return open(t, o) })
	})
	t.Run("directory", func(t *testing.T) {
		o := options(t, enginetest.Disk(t, 512*mib), "")
		enginetest.Run(t, func(t *testing.T) engine.Engine {
			p := open(t, o)
			if p.Kind() != Directory {
				t.Fatalf("on a disk with reflink the pool is of kind %s", p.Kind())
			}
			return p
		})
	})
}

func TestKinds(t *testing.T) {
	ctx := context.Background()
	// A disk without reflink: tmpfs.
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mount.Detach(dir) })
	o := options(t, dir, "")
	o.MustExist = true
	if _, err := Open(ctx, o); !errors.Is(err, errs.Corrupt) || !strings.Contains(err.Error(), "bring the data back") {
		t.Errorf("a pool that must exist and does not: %v", err)
	}
	o.MustExist = false
	if _, err := Open(ctx, o); !errors.Is(err, errs.ResourceExhausted) {
		t.Errorf("a pool on a disk of 64 MiB: %v", err)
	}
	if left, err := os.ReadDir(o.Dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := unix.Mount("none", dir, "tmpfs", unix.MS_REMOUNT, "size=256m"); err != nil {
		t.Fatal(err)
	}
	p := open(t, o)
	if p.Kind() != Image {
		t.Errorf("on a disk without reflink the pool is of kind %s", p.Kind())
	}
	o.Kind = Directory
	if _, err := Open(ctx, o); !errors.Is(err, errs.FailedPrecondition) {
		t.Errorf("an image pool opened as a directory: %v", err)
	}
	if err := p.Teardown(ctx); err != nil {
		t.Error(err)
	}
	o.Dir += "2"
	if _, err := Open(ctx, o); !errors.Is(err, errs.Unsupported) {
		t.Errorf("a directory pool where there is no reflink: %v", err)
	}
	o.Kind, o.SizeBytes = Image, 100*mib
	if _, err := Open(ctx, o); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "poolSizeBytes") {
		t.Errorf("a pool of 100 MiB: %v", err)
	}
}

func TestImageGrowsAndSurvives(t *testing.T) {
	ctx := context.Background()
	o := options(t, t.TempDir(), Image)
	p := open(t, o)
	id := engine.ID(uuid.NewString())
	if err := p.Create(ctx, id, 8*mib); err != nil {
		t.Fatal(err)
	}
	if err := p.Teardown(ctx); err != nil {
		t.Fatal(err)
	}
	o.SizeBytes = 700 * mib
	p = open(t, o)
	if n, err := xfs.SizeBytes(p.root); err != nil || n < 680*mib {
		t.Errorf("grown pool has %d bytes, %v", n, err)
	}
	if _, err := p.Stat(ctx, id); err != nil {
		t.Error(err)
	}
	o.SizeBytes = 512 * mib // cannot shrink, and says so only in the log
	if p = open(t, o); p == nil {
		t.Error("no pool")
	}
	o.SizeBytes = 0 // keeps what it has
	open(t, o)
	if st, err := os.Stat(p.image); err != nil || st.Size() != 700*mib {
		t.Errorf("image: %v, %v", st.Size(), err)
	}

	// What is no pool is never formatted over.
	if err := p.Teardown(ctx); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.image, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(ctx, o); !errors.Is(err, errs.Corrupt) {
		t.Errorf("a pool image that is none: %v", err)
	}
	if b, _ := os.ReadFile(p.image); string(b) != "precious" {
		t.Error("it was changed")
	}
}

// XFS shuts down when it cannot write its journal. The next Open mounts the pool anew, and what
// was synced is there.
func TestShutDown(t *testing.T) {
	ctx := context.Background()
	o := options(t, t.TempDir(), Image)
	p := open(t, o)
	id := engine.ID(uuid.NewString())
	if err := p.Create(ctx, id, 8*mib); err != nil {
		t.Fatal(err)
	}
	d, err := p.Attach(ctx, id, engine.Use{SectorBytes: 4096, Stay: true})
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	f, err := os.Open(p.root)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const goingDown = 0x8004587d // XFS_IOC_GOINGDOWN, _IOR('X', 125, uint32_t)
	how := uint32(2)             // without writing the journal
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), goingDown, uintptr(unsafe.Pointer(&how))); errno != 0 {
		t.Fatal(errno)
	}
	f.Close()
	if _, err := Open(ctx, o); !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("open with a volume in use: %v", err)
	}
	if a, err := p.Attached(ctx); err != nil || a[id] != d.Path {
		t.Errorf("attached while shut down: %v, %v", a, err)
	}
	if _, err := p.Attach(ctx, id, engine.Use{SectorBytes: 4096}); !errors.Is(err, errs.Unavailable) {
		t.Errorf("attach while shut down: %v", err)
	}
	if err := p.Detach(ctx, id); err != nil {
		t.Fatal(err)
	}
	p = open(t, o)
	if st, err := p.Stat(ctx, id); err != nil || st.SizeBytes != 8*mib {
		t.Errorf("after mounting anew: %+v, %v", st, err)
	}
}

// A container is never given the pool, even with everything below the host's root.
func TestUnbindable(t *testing.T) {
	dir := t.TempDir()
	p := open(t, options(t, dir, Image))
	at := filepath.Join(dir, "elsewhere")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	defer mount.UnmountBelow(context.Background(), at, patience)
	if err := unix.Mount(p.root, at, "", unix.MS_BIND, ""); err == nil {
		t.Error("the pool can be bound elsewhere")
	}
	if err := unix.Mount(p.o.Run, at, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	if mounted, _ := mount.IsMounted(filepath.Join(at, "pool")); mounted {
		t.Error("the pool came along with a recursive bind")
	}
}

// A mount namespace that somebody made meanwhile has a copy of the pool's mount. It does not
// keep the pool; only who works in it there does, and is named.
func TestCopiedNamespace(t *testing.T) {
	ctx := context.Background()
	for _, works := range []bool{false, true} {
		o := options(t, t.TempDir(), Image)
		p := open(t, o)
		dir := "/"
		if works {
			dir = p.root
		}
		other := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-c", "cd \"$0\" && echo there && exec sleep 600", dir)
		out, err := other.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Start(); err != nil {
			t.Fatal(err)
		}
		end := sync.OnceFunc(func() { other.Process.Kill(); other.Wait() })
		t.Cleanup(end)
		if _, err := out.Read(make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		table, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", other.Process.Pid))
		if err != nil || !strings.Contains(string(table), p.root) {
			t.Fatalf("the other namespace has no copy: %v", err)
		}
		if works {
			short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			err := Teardown(short, o.Dir, o.Run)
			cancel()
			if name := fmt.Sprintf("(%d)", other.Process.Pid); !errors.Is(err, errs.InUse) || !strings.Contains(err.Error(), name) {
				t.Errorf("with somebody in the pool: %v; process %s expected", err, name)
			}
			end()
		}
		if err := Teardown(ctx, o.Dir, o.Run); err != nil {
			t.Errorf("with somebody in the pool %v: %v", works, err)
		}
		if _, ok, err := loop.Find(filepath.Join(o.Dir, "pool.img")); ok || err != nil {
			t.Errorf("its device is left: %v", err)
		}
	}
}

// Something else where the pool belongs is not taken for it.
func TestForeignMount(t *testing.T) {
	o := options(t, t.TempDir(), Image)
	at := filepath.Join(o.Run, "pool")
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", at, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(context.Background(), o); !errors.Is(err, errs.FailedPrecondition) {
		t.Errorf("with a foreign mount: %v", err)
	}
	if err := mount.Detach(at); err != nil {
		t.Fatal(err)
	}
	open(t, o)
}
