package volume_test

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

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/mount"
	"github.com/orlop-io/orlop/internal/volume"
)

func TestBadClaims(t *testing.T) {
	ctx := context.Background()
	n := newNode(t).up()
	for _, tt := range []struct {
		name   string
		change func(*volume.Claim)
		says   string
	}{
		{"no name", func(c *volume.Claim) { c.Name = "" }, "lower-case"},
		{"a path for a name", func(c *volume.Claim) { c.Name = "../x" }, "lower-case"},
		{"a slash in the namespace", func(c *volume.Claim) { c.Namespace = "a/b" }, "lower-case"},
		{"a newline", func(c *volume.Claim) { c.Name = "a\n" }, "lower-case"},
		{"a long name", func(c *volume.Claim) { c.Name = strings.Repeat("a", 254) }, "lower-case"},
		{"no size", func(c *volume.Claim) { c.SizeBytes = 0 }, "above 0"},
		{"a negative size", func(c *volume.Claim) { c.SizeBytes = -1 << 62 }, "above 0"},
		{"a huge size", func(c *volume.Claim) { c.SizeBytes = 1<<63 - 1 }, "largest volume"},
		{"another class", func(c *volume.Claim) { c.Class = "fast" }, `"orlop"`},
		{"another mode", func(c *volume.Claim) { c.Mode = "Object" }, "Block"},
		{"no access mode", func(c *volume.Claim) { c.AccessModes = nil }, "ReadWriteOnce"},
		{"an unknown access mode", func(c *volume.Claim) { c.AccessModes = []string{"RWO"} }, "ReadWriteOncePod"},
		{"one pod and many", func(c *volume.Claim) { c.AccessModes = []string{volume.ReadWriteOncePod, volume.ReadWriteMany} }, "combined"},
	} {
		c := claim("bad")
		tt.change(&c)
		if _, err := n.CreateClaim(ctx, c); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	n.create(claim("good"))
	for _, change := range []func(*volume.Claim){
		func(c *volume.Claim) { c.Mode = volume.Block },
		func(c *volume.Claim) { c.AccessModes = []string{volume.ReadWriteMany} },
		func(c *volume.Claim) { c.SizeBytes = 32 * mib },
	} {
		c := claim("good")
		change(&c)
		if _, err := n.CreateClaim(ctx, c); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "cannot") {
			t.Errorf("changed to %+v: %v", c, err)
		}
	}
	c := claim("good")
	c.Class, c.Labels = "orlop", map[string]string{"a": "b"}
	if c = n.create(c); c.Labels["a"] != "b" {
		t.Errorf("labels: %+v", c)
	}
	if all, err := n.Claims(ctx); err != nil || len(all) != 1 {
		t.Errorf("claims: %+v, %v", all, err)
	}
	if _, err := n.Publish(ctx, "default", "good", "", false); !errors.Is(err, errs.Invalid) {
		t.Errorf("publish for nobody: %v", err)
	}
	if err := n.Unpublish(ctx, "default", "none", "pod"); err != nil {
		t.Errorf("unpublish a claim that does not exist: %v", err)
	}
}

func TestPromises(t *testing.T) {
	ctx := context.Background()
	n := newNode(t).up()
	sized := func(name string, size int64) volume.Claim { c := claim(name); c.SizeBytes = size; return c }
	n.create(sized("a", 250*mib))
	if _, err := n.CreateClaim(ctx, sized("b", 250*mib)); !errors.Is(err, errs.ResourceExhausted) || !strings.Contains(err.Error(), "overcommit") {
		t.Errorf("more than the pool has: %v", err)
	}
	n.create(sized("b", 20*mib))
	if _, err := n.CreateClaim(ctx, sized("b", 250*mib)); !errors.Is(err, errs.ResourceExhausted) {
		t.Errorf("expand to more than the pool has: %v", err)
	}
	if c, err := n.Claim(ctx, "default", "b"); err != nil || c.SizeBytes != 20*mib || c.CapacityBytes != 20*mib {
		t.Errorf("after a refused expansion: %+v, %v", c, err)
	}
	if err := n.DeleteClaim(ctx, "default", "a"); err != nil {
		t.Fatal(err)
	}
	n.create(sized("b", 250*mib))
	if s, err := n.Stats(ctx); err != nil || s.PromisedBytes != 250*mib || s.Claims != 1 {
		t.Errorf("stats: %+v, %v", s, err)
	}
	n.stop()
	n.opts.Overcommit = 10
	n.up()
	n.create(sized("big", 2048*mib))
	n.stop()
	n.opts.ReserveBytes = 1 << 60
	n.up()
	if _, err := n.CreateClaim(ctx, sized("c", 20*mib)); !errors.Is(err, errs.ResourceExhausted) || !strings.Contains(err.Error(), "reserve") {
		t.Errorf("with the disk in its reserve: %v", err)
	}
	n.publish("big", "pod", false) // what was promised is still kept
}

// Many pods and claims at once.
func TestConcurrent(t *testing.T) {
	ctx := context.Background()
	n := newNode(t, func(o *volume.Options) { o.Overcommit = 10 }).up()
	n.create(claim("shared"))
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for range 3 {
				pod := fmt.Sprintf("pod-%d", i)
				path, err := n.Publish(ctx, "default", "shared", pod, i%2 == 0)
				if err != nil {
					t.Error(err)
					return
				}
				if mounted, err := mount.IsMounted(path); err != nil || !mounted {
					t.Errorf("published and not mounted: %v", err)
				}
				if err := n.Unpublish(ctx, "default", "shared", pod); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			name := fmt.Sprintf("own-%d", i)
			if _, err := n.CreateClaim(ctx, claim(name)); err != nil {
				t.Error(err)
				return
			}
			if _, err := n.Publish(ctx, "default", name, "pod", false); err != nil {
				t.Error(err)
			}
			if err := errors.Join(n.Unpublish(ctx, "default", name, "pod"), n.DeleteClaim(ctx, "default", name)); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if err := n.Reconcile(ctx, map[string]bool{"pod": true, "pod-0": true, "pod-1": true, "pod-2": true, "pod-3": true, "pod-4": true, "pod-5": true}); err != nil {
				t.Error(err)
			}
			if _, err := n.Claims(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if l := loops(t, filepath.Dir(n.opts.Root)); len(l) != 1 {
		t.Errorf("devices left: %+v", l)
	}
}

// A process of the host in the volume: the error says so, and the holder still holds it.
func TestBusy(t *testing.T) {
	ctx := context.Background()
	n := newNode(t).up()
	n.create(claim("data"))
	dir := n.publish("data", "pod", false)
	f, err := os.Create(filepath.Join(dir, "open"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := n.Unpublish(ctx, "default", "data", "pod"); !errors.Is(err, errs.InUse) || !strings.Contains(err.Error(), dir) {
		t.Errorf("unpublish while busy: %v", err)
	}
	if c, _ := n.Claim(ctx, "default", "data"); c.Path != dir || len(c.Holders) != 1 {
		t.Errorf("after that: %+v", c)
	}
	f.Close()
	n.unpublish("data", "pod")
}

// A mount namespace that has not ended yet keeps the filesystem: the volume can go on from it,
// and is not deleted under it.
func TestOtherNamespace(t *testing.T) {
	ctx := context.Background()
	n := newNode(t).up()
	n.create(claim("data"))
	dir := n.publish("data", "pod", false)
	cmd := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-c", "cd \"$0\" && echo ready && exec sleep 600", dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() { cmd.Process.Kill(); cmd.Wait() })
	t.Cleanup(end) // before the node's own cleanup
	if _, err := out.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	n.unpublish("data", "pod")
	if mounted, _ := mount.IsMounted(dir); mounted {
		t.Error("still mounted here")
	}
	if l := loops(t, filepath.Dir(n.opts.Root)); len(l) != 2 {
		t.Errorf("devices: %+v", l)
	}
	if err := n.DeleteClaim(ctx, "default", "data"); !errors.Is(err, errs.InUse) {
		t.Errorf("delete under another namespace: %v", err)
	}
	end()
	for deadline := time.Now().Add(10 * time.Second); len(loops(t, filepath.Dir(n.opts.Root))) != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the device did not go with the namespace")
		}
	}
	if err := n.DeleteClaim(ctx, "default", "data"); err != nil {
		t.Error(err)
	}
}

func TestTrimAndPurge(t *testing.T) {
	ctx := context.Background()
	n := newNode(t).up()
	n.create(claim("data"))
	dir := n.publish("data", "pod", false)
	write(t, filepath.Join(dir, "big"), strings.Repeat("x", 30*mib))
	used := func() int64 {
		c, err := n.Claim(ctx, "default", "data")
		if err != nil {
			t.Fatal(err)
		}
		return c.UsedBytes
	}
	if u := used(); u < 30*mib {
		t.Errorf("30 MiB written, %d used", u)
	}
	if err := os.Remove(filepath.Join(dir, "big")); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sync", "-f", dir).CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	if _, err := n.Trim(ctx); err != nil {
		t.Error(err)
	}
	if u := used(); u > 8*mib {
		t.Errorf("%d used after removing and trimming", u)
	}
	if err := n.Purge(ctx); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{n.opts.Root, n.opts.Run} {
		if _, err := os.Stat(filepath.Join(d, "volume")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("left below %s: %v", d, err)
		}
	}
	n.stop()
	n.up()
	if all, err := n.Claims(ctx); err != nil || len(all) != 0 {
		t.Errorf("claims after Purge: %+v, %v", all, err)
	}
}
