package volume_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/orlop-io/orlop/internal/platform/reflink"
	"github.com/orlop-io/orlop/internal/volume"
	"github.com/orlop-io/orlop/internal/volume/engine/enginetest"
)

// What was on the disk at one moment, while an application writes, is what a loss of
// power leaves. The disk can reflink, so that the copy is of one moment; the pool is
// an image nevertheless, the longest way that an fsync has to go.
func TestPowerLoss(t *testing.T) {
	ctx := context.Background()
	disk := enginetest.Disk(t, 1<<30)
	n := newNode(t, func(o *volume.Options) { o.Root = filepath.Join(disk, "root") }).up()
	n.create(claim("data"))
	dir := n.publish("data", "pod", false)

	// The application: a file is acknowledged when it and its name are synced.
	var acked atomic.Int64
	stop, stopped := make(chan struct{}), make(chan error, 1)
	content := func(i int64) string { return strings.Repeat(fmt.Sprintf("record %d ", i), 2000) }
	go func() {
		for i := int64(0); ; i++ {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			if err := writeSynced(dir, fmt.Sprintf("f%d", i%300), content(i)); err != nil {
				stopped <- err
				return
			}
			acked.Store(i + 1)
			// And something that nobody waits for.
			os.WriteFile(filepath.Join(dir, "unsynced"), []byte(content(i)), 0o600)
		}
	}()
	image := filepath.Join(n.opts.Root, "volume/pool.img")
	type cut struct {
		path  string
		acked int64
	}
	var cuts []cut
	for i := range 6 {
		for goal, deadline := acked.Load()+int64(7+5*i), time.Now().Add(time.Minute); acked.Load() < goal; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the application does not get on")
			}
		}
		c := cut{fmt.Sprintf("%s.cut%d", image, i), acked.Load()}
		if err := reflink.Clone(c.path, image); err != nil {
			t.Fatal(err)
		}
		cuts = append(cuts, c)
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	for _, c := range cuts {
		n.reboot()
		if err := n.Teardown(ctx); err != nil {
			t.Fatal(err)
		}
		n.stop()
		if err := os.Rename(c.path, image); err != nil {
			t.Fatal(err)
		}
		n.up()
		dir := n.publish("data", "pod", false)
		lost := 0
		for i := max(0, c.acked-300); i < c.acked; i++ {
			b, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("f%d", i%300)))
			// A later record may have taken the name already.
			if err != nil || string(b) != content(i) && !strings.HasPrefix(string(b), fmt.Sprintf("record %d ", i+300)) {
				lost++
			}
		}
		if lost > 0 {
			t.Errorf("after a loss of power %d of %d acknowledged files are lost", lost, c.acked)
		}
		n.unpublish("data", "pod")
		img := filepath.Join(n.opts.Run, "volume/pool/volumes", string(n.create(claim("data")).Volume)+".img")
		if out, err := exec.Command("e2fsck", "-fn", img).CombinedOutput(); err != nil {
			t.Errorf("the filesystem is not sound: %v\n%s", err, out)
		}
	}
	if !strings.Contains(n.log.String(), "not unmounted cleanly") {
		t.Error("no volume was checked after a loss of power")
	}
}

// writeSynced writes as databases do: a new file, synced, takes the name, and the directory is synced.
func writeSynced(dir, name, content string) error {
	tmp := filepath.Join(dir, name+".new")
	f, err := os.Create(tmp)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(content); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// The disk below the pool runs full, because more was promised than there is: writes
// fail, and what was synced before stays.
func TestHostDiskFull(t *testing.T) {
	disk := enginetest.Disk(t, 900*mib)
	n := newNode(t, func(o *volume.Options) {
		o.Root, o.PoolSizeBytes, o.Overcommit = filepath.Join(disk, "root"), 4096*mib, 10
		o.ReserveBytes = 64 * mib
	}).up()
	c := claim("data")
	c.SizeBytes = 1200 * mib
	n.create(c)
	dir := n.publish("data", "pod", false)
	ballast := filepath.Join(disk, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 400*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	kept := strings.Repeat("kept ", mib)
	write(t, filepath.Join(dir, "kept"), kept)
	var err error
	for i := 0; err == nil && i < 150; i++ {
		err = writeSynced(dir, fmt.Sprint("fill", i), strings.Repeat("x", 8*mib))
	}
	t.Logf("the volume's writes ended with: %v", err)
	if err == nil {
		t.Fatal("more was written than the disk has")
	}
	if c, err := n.CreateClaim(context.Background(), claim("more")); err == nil {
		t.Errorf("a claim was made on a full disk: %+v", c)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	n.reboot()
	wantFile(t, filepath.Join(n.publish("data", "pod", false), "kept"), kept)
	write(t, filepath.Join(n.publish("data", "pod", false), "new"), kept)
	n.create(claim("more"))
}
