package volume_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/store"
)

// image returns where the claim's image is.
func (n *node) image(name string) string {
	n.t.Helper()
	c, err := n.Claim(context.Background(), "default", name)
	if err != nil {
		n.t.Fatal(err)
	}
	return filepath.Join(n.opts.Run, "volume/pool/volumes", string(c.Volume)+".img")
}

// withData makes a claim that holds a file.
func (n *node) withData(name string) (image string) {
	n.t.Helper()
	n.create(claim(name))
	write(n.t, filepath.Join(n.publish(name, "pod", false), "file"), "content")
	n.unpublish(name, "pod")
	return n.image(name)
}

func debugfs(t *testing.T, image, request string) {
	t.Helper()
	if out, err := exec.Command("debugfs", "-w", "-R", request, image).CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v\n%s", err, out)
	}
}

func poke(t *testing.T, image string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func TestRepaired(t *testing.T) {
	n := newNode(t).up()
	image := n.withData("data")
	debugfs(t, image, "set_super_value state 2")              // the kernel found an error
	debugfs(t, image, "set_super_value free_blocks_count 77") // here is one
	wantFile(t, filepath.Join(n.publish("data", "pod", false), "file"), "content")
	if !strings.Contains(n.log.String(), "not unmounted cleanly") {
		t.Error("it was not checked")
	}
}

// What cannot be repaired, or is not the volume's, is refused and never formatted.
func TestNeverFormatted(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, image string)
		says   string
	}{
		{"superblock gone", func(t *testing.T, image string) { poke(t, image, 0, make([]byte, 4096)) }, "no ext4"},
		{"all zeros", func(t *testing.T, image string) { poke(t, image, 0, make([]byte, 4<<20)) }, "no ext4"},
		{"another filesystem", func(t *testing.T, image string) {
			debugfs(t, image, "set_super_value uuid 11111111-2222-4333-8444-555555555555")
		}, "another one's"},
		{"beyond repair", func(t *testing.T, image string) {
			debugfs(t, image, "set_super_value state 2")
			debugfs(t, image, "clri <2>") // the root directory
		}, "e2fsck -n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := context.Background()
			n := newNode(t).up()
			image := n.withData("data")
			tt.damage(t, image)
			before, err := os.ReadFile(image)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				_, err := n.Publish(ctx, "default", "data", "pod", false)
				if !errors.Is(err, errs.Corrupt) || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("publish: %v", err)
				}
				n.stop()
				n.up()
			}
			if _, err := n.CreateClaim(ctx, claim("data")); err != nil {
				t.Errorf("the claim applied again: %v", err)
			}
			after, err := os.ReadFile(image)
			if err != nil {
				t.Fatal(err)
			}
			if tt.name != "beyond repair" && string(before) != string(after) { // e2fsck may have repaired a part
				t.Error("the image was changed")
			}
			if c, err := n.Claim(ctx, "default", "data"); err != nil || c.Path != "" || len(c.Holders) > 0 {
				t.Errorf("a failed publication left something: %+v, %v", c, err)
			}
			if err := n.DeleteClaim(ctx, "default", "data"); err != nil {
				t.Errorf("delete: %v", err)
			}
		})
	}
}

// A pool without records, as after the loss of the state file: nothing is thrown away.
func TestStateLost(t *testing.T) {
	ctx := context.Background()
	n := newNode(t).up()
	image := n.withData("data")
	if err := n.Teardown(ctx); err != nil {
		t.Fatal(err)
	}
	n.stop()
	if err := os.Remove(filepath.Join(n.opts.Root, "state.db")); err != nil {
		t.Fatal(err)
	}
	n.up()
	if _, err := os.Stat(image); err != nil {
		t.Errorf("the image is gone: %v", err)
	}
	if !strings.Contains(n.log.String(), "has no claim") {
		t.Error("nothing is said about it")
	}
}

// Records without a pool: nothing is made up.
func TestPoolLost(t *testing.T) {
	n := newNode(t).up()
	n.withData("data")
	if err := n.Teardown(context.Background()); err != nil {
		t.Fatal(err)
	}
	n.stop()
	pool := filepath.Join(n.opts.Root, "volume/pool.img")
	if err := os.Rename(pool, pool+".away"); err != nil {
		t.Fatal(err)
	}
	if err := n.start(); !errors.Is(err, errs.Corrupt) {
		t.Errorf("open without the pool: %v", err)
	}
	if _, err := os.Stat(pool); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a new pool was made: %v", err)
	}
	if err := os.Rename(pool+".away", pool); err != nil {
		t.Fatal(err)
	}
	n.up()
	wantFile(t, filepath.Join(n.publish("data", "pod", false), "file"), "content")
}

// Another boot: nobody holds anything, whatever the file says.
func TestAnotherBoot(t *testing.T) {
	n := newNode(t).up()
	n.withData("data")
	n.publish("data", "pod", false)
	boots, err := store.NewBucket[string](n.opts.Volatile, "volume.boot")
	if err != nil {
		t.Fatal(err)
	}
	if err := boots.Put("id", "another"); err != nil {
		t.Fatal(err)
	}
	n.stop()
	n.up()
	if c, err := n.Claim(context.Background(), "default", "data"); err != nil || len(c.Holders) > 0 || c.Path != "" {
		t.Errorf("after another boot: %+v, %v", c, err)
	}
}
