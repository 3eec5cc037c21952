package volume_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/ext4"
	"github.com/orlop-io/orlop/internal/platform/mount"
	"github.com/orlop-io/orlop/internal/volume"
	"golang.org/x/sys/unix"
)

func TestLife(t *testing.T) {
	ctx := context.Background()
	n := newNode(t).up()
	start := time.Now()
	c := n.create(claim("data"))
	made := time.Now()
	dir := n.publish("data", "pod-1", false)
	t.Logf("create %v, publish %v", made.Sub(start), time.Since(made))
	if c.Phase != volume.Bound || c.CapacityBytes != 64*mib || c.Mode != volume.Filesystem || c.Class != volume.DefaultClass {
		t.Errorf("claim: %+v", c)
	}
	write(t, filepath.Join(dir, "note"), "hello")
	if again := n.publish("data", "pod-1", false); again != dir {
		t.Errorf("published again at %s, not %s", again, dir)
	}
	c, err := n.Claim(ctx, "default", "data")
	if err != nil || c.Path != dir || !slices.Equal(c.Holders, []string{"pod-1"}) || c.UsedBytes == 0 || c.UsedBytes > 16*mib {
		t.Errorf("claim in use: %+v, %v", c, err)
	}

	// A daemon that ends and starts again leaves the mount alone.
	before, _, _ := mount.At(dir)
	n.stop()
	n.up()
	if err := n.Reconcile(ctx, map[string]bool{"pod-1": true}); err != nil {
		t.Error(err)
	}
	if after, ok, _ := mount.At(dir); !ok || after.ID != before.ID {
		t.Errorf("the mount did not survive a restart: %+v", after)
	}
	if err := n.DeleteClaim(ctx, "default", "data"); !errors.Is(err, errs.InUse) || !strings.Contains(err.Error(), "pod-1") {
		t.Errorf("delete while in use: %v", err)
	}
	n.unpublish("data", "pod-1")
	n.unpublish("data", "pod-1")
	if mounted, _ := mount.IsMounted(dir); mounted {
		t.Error("still mounted after Unpublish")
	}
	if l := loops(t, filepath.Dir(n.opts.Root)); len(l) != 1 {
		t.Errorf("devices after Unpublish: %+v", l)
	}

	n.reboot()
	wantFile(t, filepath.Join(n.publish("data", "pod-2", false), "note"), "hello")
	n.unpublish("data", "pod-2")
	if err := n.DeleteClaim(ctx, "default", "data"); err != nil {
		t.Fatal(err)
	}
	if err := n.DeleteClaim(ctx, "default", "data"); !errors.Is(err, errs.NotFound) {
		t.Errorf("delete twice: %v", err)
	}
	if _, err := n.Publish(ctx, "default", "data", "pod-3", false); !errors.Is(err, errs.NotFound) {
		t.Errorf("publish a deleted claim: %v", err)
	}
	if s, err := n.Stats(ctx); err != nil || s.Claims != 0 || s.PromisedBytes != 0 || s.UsedBytes != 0 || s.Published != 0 {
		t.Errorf("stats of an empty pool: %+v, %v", s, err)
	}
}

// What a daemon left that was killed is taken away without one, and without its state.
func TestTeardownAlone(t *testing.T) {
	ctx := context.Background()
	n := newNode(t).up()
	n.create(claim("data"))
	n.publish("data", "pod", false)
	n.publish("data", "reader", true)
	c := claim("raw")
	c.Mode = volume.Block
	n.create(c)
	n.publish("raw", "pod", false)
	n.stop()
	for range 2 {
		if err := volume.Teardown(ctx, n.opts.Root, n.opts.Run); err != nil {
			t.Fatal(err)
		}
	}
	noLeak(t, filepath.Dir(n.opts.Root))
	n.up()
	n.publish("data", "pod", false)
	// Nothing was ever there.
	dir := t.TempDir()
	if err := volume.Teardown(ctx, filepath.Join(dir, "root"), filepath.Join(dir, "run")); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("made: %v, %v", left, err)
	}
}

func TestCapacity(t *testing.T) {
	n := newNode(t).up()
	n.create(claim("small"))
	dir := n.publish("small", "pod", false)
	f, err := os.Create(filepath.Join(dir, "big"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var wrote int
	for err == nil {
		var w int
		w, err = f.Write(make([]byte, mib))
		wrote += w
	}
	if !errors.Is(err, unix.ENOSPC) || wrote < 48*mib || wrote > 64*mib {
		t.Errorf("wrote %d bytes into 64 MiB, then: %v", wrote, err)
	}
}

func TestReadOnlyAndShared(t *testing.T) {
	ctx := context.Background()
	n := newNode(t).up()
	n.create(claim("shared"))
	rw := n.publish("shared", "writer", false)
	ro := n.publish("shared", "reader", true)
	write(t, filepath.Join(rw, "x"), "1")
	wantFile(t, filepath.Join(ro, "x"), "1")
	if err := os.WriteFile(filepath.Join(ro, "y"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write through a read-only publication: %v", err)
	}
	n.unpublish("shared", "reader")
	if mounted, _ := mount.IsMounted(ro); mounted {
		t.Error("the read-only mount outlives its last holder")
	}
	wantFile(t, filepath.Join(rw, "x"), "1")
	n.unpublish("shared", "writer")

	c := claim("one")
	c.AccessModes = []string{volume.ReadWriteOncePod}
	n.create(c)
	n.publish("one", "first", false)
	if _, err := n.Publish(ctx, "default", "one", "second", false); !errors.Is(err, errs.InUse) || !strings.Contains(err.Error(), "first") {
		t.Errorf("second pod of a ReadWriteOncePod claim: %v", err)
	}
	n.publish("one", "first", false)
	if err := n.UnpublishAll(ctx, "first"); err != nil {
		t.Fatal(err)
	}
	n.publish("one", "second", false)

	c = claim("many")
	c.AccessModes = []string{volume.ReadOnlyMany}
	n.create(c)
	if err := os.WriteFile(filepath.Join(n.publish("many", "p", false), "y"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a ReadOnlyMany claim: %v", err)
	}
}

func TestBlock(t *testing.T) {
	ctx := context.Background()
	n := newNode(t).up()
	c := claim("raw")
	c.Mode = volume.Block
	n.create(c)
	dev := n.publish("raw", "a", false)
	if again := n.publish("raw", "b", false); again != dev {
		t.Errorf("two devices for one volume: %s and %s", dev, again)
	}
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if size, _ := f.Seek(0, 2); size != 64*mib {
		t.Errorf("the device has %d bytes", size)
	}
	f.WriteAt([]byte("mine"), 12345)
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	n.stop()
	n.up() // the device has no opener now; it must stay
	if c, err := n.Claim(ctx, "default", "raw"); err != nil || c.Path != dev {
		t.Errorf("device after a restart: %+v, %v", c, err)
	}
	n.unpublish("raw", "a")
	if c, err := n.Claim(ctx, "default", "raw"); err != nil || c.Path != dev {
		t.Errorf("device while one holds it: %+v, %v", c, err)
	}
	if err := n.Reconcile(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if l := loops(t, filepath.Dir(n.opts.Root)); len(l) != 1 {
		t.Errorf("devices after Reconcile: %+v", l)
	}
	f, err = os.Open(n.publish("raw", "c", false))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 4)
	if f.ReadAt(b, 12345); string(b) != "mine" {
		t.Errorf("read back %q", b)
	}
}

func TestExpand(t *testing.T) {
	n := newNode(t).up()
	c := n.create(claim("grows"))
	c.SizeBytes = 100 * mib
	free := func(dir string) int64 {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		return int64(st.Blocks) * st.Bsize
	}
	// Nobody holds it.
	if c = n.create(c); c.CapacityBytes != 100*mib {
		t.Errorf("expanded: %+v", c)
	}
	dir := n.publish("grows", "pod", false)
	if got := free(dir); got < 80*mib {
		t.Errorf("filesystem has %d bytes", got)
	}
	write(t, filepath.Join(dir, "x"), "kept")
	// A pod holds it: at once where the kernel lets us, else with the next mount.
	c.SizeBytes = 200 * mib
	if c = n.create(c); c.CapacityBytes != 200*mib {
		t.Errorf("expanded: %+v", c)
	}
	if got := free(dir); c.ResizePending != (got < 160*mib) {
		t.Errorf("pending %v with a filesystem of %d bytes", c.ResizePending, got)
	}
	if ext4.CanGrowMounted() && c.ResizePending {
		t.Error("a mounted filesystem did not grow, although it may")
	}
	n.unpublish("grows", "pod")
	dir = n.publish("grows", "pod", false)
	if got := free(dir); got < 160*mib {
		t.Errorf("filesystem has %d bytes after the next mount", got)
	}
	wantFile(t, filepath.Join(dir, "x"), "kept")
	if c, _ := n.Claim(context.Background(), "default", "grows"); c.ResizePending {
		t.Error("still pending")
	}
	c.SizeBytes = 50 * mib
	if _, err := n.CreateClaim(context.Background(), c); !errors.Is(err, errs.Invalid) {
		t.Errorf("shrink: %v", err)
	}
}
