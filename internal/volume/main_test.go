package volume_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/platform/loop"
	"github.com/orlop-io/orlop/internal/platform/mount"
	"github.com/orlop-io/orlop/internal/volume"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests attach and mount real volumes: run them as root")
		os.Exit(1)
	}
	code := m.Run()
	removeCrash()
	os.Exit(code)
}

const mib = 1 << 20

// node is a host with volumes, which can be restarted. At the end of the test it is
// torn down, and a mount or a loop device that is left fails the test.
type node struct {
	*volume.Volumes
	t    *testing.T
	opts volume.Options
	log  bytes.Buffer
}

func newNode(t *testing.T, change ...func(*volume.Options)) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{t: t}
	n.opts = volume.Options{
		Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run"),
		PoolSizeBytes: 512 * mib, Pool: volume.PoolImage,
	}
	for _, c := range change {
		c(&n.opts)
	}
	n.opts.Log = slog.New(slog.NewTextHandler(&n.log, nil))
	t.Cleanup(func() {
		if n.Volumes != nil {
			if err := n.Teardown(context.Background()); err != nil {
				t.Errorf("Teardown: %v", err)
			}
			n.stop()
		}
		if t.Failed() {
			t.Logf("log:\n%s", n.log.String())
		}
		noLeak(t, dir)
	})
	return n
}

// start opens the node's volumes.
func (n *node) start() error {
	n.t.Helper()
	var err error
	if n.opts.DB, err = store.Open(filepath.Join(n.opts.Root, "state.db"), store.Durable); err != nil {
		return err
	}
	if n.opts.Volatile, err = store.Open(filepath.Join(n.opts.Run, "state.db"), store.Volatile); err != nil {
		n.opts.DB.Close()
		return err
	}
	if n.Volumes, err = volume.Open(context.Background(), n.opts); err != nil {
		n.Volumes = nil
		n.opts.DB.Close()
		n.opts.Volatile.Close()
	}
	return err
}

// stop lets go of the volumes as a daemon that ends does: mounts stay.
func (n *node) stop() {
	n.t.Helper()
	for _, c := range []interface{ Close() error }{n.Volumes, n.opts.DB, n.opts.Volatile} {
		if err := c.Close(); err != nil {
			n.t.Error(err)
		}
	}
	n.Volumes = nil
}

// up starts the node or fails the test.
func (n *node) up() *node {
	n.t.Helper()
	if err := n.start(); err != nil {
		n.t.Fatal(err)
	}
	return n
}

// reboot does what a loss of power does to the kernel's objects and to the run directory.
func (n *node) reboot() {
	n.t.Helper()
	if err := n.Teardown(context.Background()); err != nil {
		n.t.Fatal(err)
	}
	n.stop()
	if err := os.RemoveAll(n.opts.Run); err != nil {
		n.t.Fatal(err)
	}
	n.up()
}

// loops returns the loop devices whose file lies below dir: the pool's and its volumes'.
func loops(t *testing.T, dir string) []loop.Info {
	t.Helper()
	all, err := loop.List(func(backing string) bool { return strings.HasPrefix(backing, dir+"/") })
	if err != nil {
		t.Error(err)
	}
	return all
}

func noLeak(t *testing.T, dir string) {
	t.Helper()
	mounts, err := mount.Below(dir)
	if err != nil {
		t.Error(err)
	}
	for _, m := range mounts {
		t.Errorf("mount left: %s on %s", m.Source, m.Point)
		mount.Detach(m.Point)
	}
	for _, l := range loops(t, dir) {
		t.Errorf("loop device left: %s of %s", l.Device, l.Backing)
		loop.Detach(context.Background(), l.Backing)
	}
}

// claim is what most tests ask for.
func claim(name string) volume.Claim {
	return volume.Claim{Namespace: "default", Name: name, SizeBytes: 64 * mib, AccessModes: []string{volume.ReadWriteOnce}}
}

func (n *node) create(c volume.Claim) volume.Claim {
	n.t.Helper()
	c, err := n.CreateClaim(context.Background(), c)
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

func (n *node) publish(name, holder string, readOnly bool) string {
	n.t.Helper()
	path, err := n.Publish(context.Background(), "default", name, holder, readOnly)
	if err != nil {
		n.t.Fatal(err)
	}
	return path
}

func (n *node) unpublish(name, holder string) {
	n.t.Helper()
	if err := n.Unpublish(context.Background(), "default", name, holder); err != nil {
		n.t.Fatal(err)
	}
}

// write writes a file and makes it durable as an application does.
func write(t *testing.T, path, content string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func wantFile(t *testing.T, path, content string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	} else if string(got) != content {
		t.Errorf("%s holds %d bytes, not the %d written", path, len(got), len(content))
	}
}
