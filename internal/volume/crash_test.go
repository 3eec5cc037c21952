package volume_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/mount"
	"github.com/orlop-io/orlop/internal/volume"
	"github.com/orlop-io/orlop/test/programs"
)

// removeCrash removes the helper; TestMain calls it.
var removeCrash = func() {}

// crashBinary builds the helper once. It has to be static: AllThreadsSyscall needs that.
var crashBinary = sync.OnceValues(func() (string, error) {
	dir, remove, err := programs.Build(programs.Program{Package: "internal/volume/crash", Tags: "faults"})
	if err != nil {
		return "", err
	}
	removeCrash = remove
	return filepath.Join(dir, "crash"), nil
})

// crasher is a node on which the helper runs.
type crasher struct {
	*node
	bin string
	ack map[string]bool // what was acknowledged so far
}

func newCrasher(t *testing.T) *crasher {
	t.Helper()
	bin, err := crashBinary()
	if err != nil {
		t.Fatal(err)
	}
	return &crasher{newNode(t), bin, map[string]bool{}}
}

// run runs the helper, and tells whether it was killed. Another end than that or success
// fails the test. With after above 0 it is killed then.
func (c *crasher) run(after time.Duration, env ...string) (killed bool) {
	c.t.Helper()
	cmd := exec.Command(c.bin, "run", c.opts.Root, c.opts.Run)
	cmd.Env = append(os.Environ(), env...)
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	cmd.WaitDelay = time.Minute // mkfs and the like may outlive it and hold its output
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	if after > 0 {
		defer time.AfterFunc(after, func() { cmd.Process.Kill() }).Stop()
	}
	err := cmd.Wait()
	for _, a := range strings.Fields(out.String()) {
		c.ack[a] = true
	}
	if err == nil {
		return false
	}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		c.t.Fatalf("helper: %v\n%s", err, log.String())
	}
	return true
}

// check opens what a killed helper left and looks whether it is sound.
func (c *crasher) check() {
	t, ctx := c.t, context.Background()
	t.Helper()
	c.up()
	claims, err := c.Claims(ctx)
	if err != nil {
		t.Fatal(err)
	}
	scratch, err := c.Scratch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(scratch) > 0 && c.ack["raw-gone"] {
		t.Errorf("scratch space outlives its holder: %+v", scratch)
	}
	claims = append(claims, scratch...)
	images := map[volume.ID]bool{}
	entries, err := os.ReadDir(filepath.Join(c.opts.Run, "volume/pool/volumes"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".img")
		if !ok {
			t.Errorf("left in the pool: %s", e.Name())
		}
		images[volume.ID(id)] = true
	}
	devices := 1 // the pool's
	for _, cl := range claims {
		if cl.Phase != volume.Bound {
			t.Errorf("claim %s is %s", cl.Name, cl.Phase)
		}
		if !images[cl.Volume] {
			t.Errorf("claim %s has no image", cl.Name)
		}
		if cl.Path != "" {
			devices++
			if len(cl.Holders) == 0 {
				t.Errorf("claim %s is present at %s and nobody holds it", cl.Name, cl.Path)
			}
		}
	}
	if len(images) != len(claims) {
		t.Errorf("%d images for %d claims", len(images), len(claims))
	}
	for _, l := range loops(t, filepath.Dir(c.opts.Root)) {
		devices--
		if l.Device == "" {
			t.Error("a loop device without a name")
		}
	}
	// The images in the pool are listed under the pool's mount point too.
	if devices != 0 {
		t.Errorf("%d devices are missing (or, below 0, too many): %+v", devices, loops(t, filepath.Dir(c.opts.Root)))
	}
	if c.ack["created"] {
		if _, err := c.Claim(ctx, "default", "data"); err != nil {
			t.Error(err)
		}
	}
	if c.ack["written"] {
		c.wantPayload("data")
	}
	if c.ack["raw-written"] && !c.ack["raw-gone"] {
		c.wantPayload("raw")
	}
	if c.ack["raw-deleted"] {
		if _, err := c.Claim(ctx, "default", "raw"); !errors.Is(err, errs.NotFound) {
			t.Errorf("a deleted claim came back: %v", err)
		}
	}
	if err := c.Reconcile(ctx, map[string]bool{"pod-1": true, "pod-2": true}); err != nil {
		t.Error(err)
	}
	c.stop()
}

// wantPayload reads a claim's data as a pod of its own.
func (c *crasher) wantPayload(name string) {
	c.t.Helper()
	path := c.publish(name, "checker", true)
	if name == "data" {
		path = filepath.Join(path, "file")
	}
	f, err := os.Open(path)
	if err != nil {
		c.t.Error(err)
	} else {
		want := []byte(strings.Repeat("what was acknowledged must be there ", 4096))
		got := make([]byte, len(want))
		if f.Read(got); !bytes.Equal(got, want) {
			c.t.Errorf("acknowledged data of %s is lost", name)
		}
		f.Close()
	}
	c.unpublish(name, "checker")
}

// finish runs the helper to its end, and checks that nothing but the pool is left when nobody holds anything.
func (c *crasher) finish() {
	c.t.Helper()
	if c.run(0) {
		c.t.Fatal("killed without being told to")
	}
	for _, a := range []string{"raw-deleted", "pool-grown"} {
		if !c.ack[a] {
			c.t.Errorf("%q was never acknowledged", a)
		}
	}
	c.check()
	c.up()
	if err := c.Reconcile(context.Background(), nil); err != nil {
		c.t.Error(err)
	}
	mounts, err := mount.Below(filepath.Dir(c.opts.Root))
	if err != nil || len(mounts) != 1 {
		c.t.Errorf("mounts when nobody holds a volume: %+v, %v", mounts, err)
	}
	if l := loops(c.t, filepath.Dir(c.opts.Root)); len(l) != 1 {
		c.t.Errorf("devices when nobody holds a volume: %+v", l)
	}
}

// Killed at every point there is: what was acknowledged is there, the rest was undone or completed,
// and nothing is left in the kernel.
func TestKilledAtEveryPoint(t *testing.T) {
	bin, err := crashBinary()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(bin, "points").Output()
	if err != nil {
		t.Fatal(err)
	}
	points := strings.Fields(string(out))
	if len(points) < 30 {
		t.Errorf("only %d fault points: %v", len(points), points)
	}
	for _, p := range points {
		t.Run(p, func(t *testing.T) {
			c := newCrasher(t)
			if !c.run(0, "ORLOP_FAULT="+p) {
				t.Fatal("the point was never reached")
			}
			// Killed at the same point again while recovering, where that passes it.
			c.run(0, "ORLOP_FAULT="+p)
			c.check()
			c.finish()
		})
	}
}

// Killed at any moment, so in the middle of mkfs, too.
func TestKilledAnywhere(t *testing.T) {
	for range 12 {
		c := newCrasher(t)
		for range 20 {
			if !c.run(time.Duration(1+rand.IntN(60)) * time.Millisecond) {
				break
			}
		}
		c.check()
		c.finish()
		if t.Failed() {
			return
		}
	}
}
