package volume_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/volume"
	"golang.org/x/sys/unix"
)

// fill writes into dir until nothing more fits, and returns how much did.
func fill(t *testing.T, dir string) int64 {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var wrote int64
	for block := make([]byte, mib/4); ; {
		n, err := f.Write(block)
		if wrote += int64(n); errors.Is(err, unix.ENOSPC) {
			return wrote
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestScratch(t *testing.T) {
	ctx := context.Background()
	n := newNode(t, func(o *volume.Options) { o.PoolSizeBytes = 1 << 30 }).up()
	scratch := func(pod, name string, size int64) string {
		t.Helper()
		dir, err := n.PublishScratch(ctx, pod, name, size)
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
	count := func() int {
		t.Helper()
		list, err := n.Scratch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	// As much fits as was asked for, and not much more.
	for _, size := range []int64{mib, 16 * mib, 100 * mib, 400 * mib} {
		dir := scratch("pod-1", "tmp", size)
		if got := fill(t, dir); got < size || got > max(size+size/8+2*mib, 16*mib) {
			t.Errorf("%d MiB fit into %d", got/mib, size/mib)
		}
		if again := scratch("pod-1", "tmp", size); again != dir {
			t.Errorf("published again at %s, was %s", again, dir)
		}
		if _, err := os.Stat(filepath.Join(dir, "fill")); err != nil {
			t.Error(err)
		}
		if err := n.UnpublishAll(ctx, "pod-1"); err != nil {
			t.Fatal(err)
		}
		if c := count(); c != 0 {
			t.Errorf("%d outlive their holder", c)
		}
	}
	// Two pods have nothing to do with each other, nor with claims.
	n.create(claim("tmp"))
	write(t, filepath.Join(scratch("pod-1", "tmp", mib), "x"), "1")
	write(t, filepath.Join(scratch("pod-2", "tmp", mib), "x"), "2")
	if list, err := n.Claims(ctx); err != nil || len(list) != 1 {
		t.Errorf("claims: %+v, %v", list, err)
	}
	if s, err := n.Stats(ctx); err != nil || s.Claims != 1 || s.Scratch != 2 || s.Published != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	// After a restart the pods that live have theirs still; those of others are gone.
	n.stop()
	n.up()
	if err := n.Reconcile(ctx, map[string]bool{"pod-2": true}); err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(scratch("pod-2", "tmp", mib), "x"), "2")
	if c := count(); c != 1 {
		t.Errorf("%d are left", c)
	}
	n.reboot()
	if err := n.Reconcile(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if c := count(); c != 0 {
		t.Errorf("%d outlive the machine", c)
	}
	for _, bad := range []struct {
		pod, name string
		size      int64
		kind      *errs.Kind
	}{
		{"pod-1", "tmp", 0, errs.Invalid}, {"pod-1", "tmp", volume.MaxSizeBytes, errs.Invalid}, {"", "tmp", mib, errs.Invalid},
		{"pod-1", "../tmp", mib, errs.Invalid}, {"a/b", "tmp", mib, errs.Invalid}, {"pod-1", "tmp", 1 << 40, errs.ResourceExhausted},
	} {
		if _, err := n.PublishScratch(ctx, bad.pod, bad.name, bad.size); !errors.Is(err, bad.kind) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if c := count(); c != 0 {
		t.Errorf("%d are left of what was refused", c)
	}
}
