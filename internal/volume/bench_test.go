package volume_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/volume"
)

// What a pod waits for: go test -bench Life -run '^$' ./internal/volume
func BenchmarkLife(b *testing.B) {
	ctx := context.Background()
	dir := b.TempDir()
	start := time.Now()
	v := benchNode(b, dir)
	b.Logf("pool made in %v", time.Since(start))
	var create, publish, unpublish, expand, resize, remove time.Duration
	step := func(sum *time.Duration, err error, since time.Time) {
		if err != nil {
			b.Fatal(err)
		}
		*sum += time.Since(since)
	}
	for b.Loop() {
		c := volume.Claim{Namespace: "default", Name: "data", SizeBytes: 10 << 30, AccessModes: []string{volume.ReadWriteOnce}}
		t := time.Now()
		_, err := v.CreateClaim(ctx, c)
		step(&create, err, t)
		t = time.Now()
		_, err = v.Publish(ctx, "default", "data", "pod", false)
		step(&publish, err, t)
		t = time.Now()
		err = v.Unpublish(ctx, "default", "data", "pod")
		step(&unpublish, err, t)
		if _, err = v.Publish(ctx, "default", "data", "pod", false); err != nil {
			b.Fatal(err)
		}
		t = time.Now()
		c.SizeBytes = 12 << 30
		_, err = v.CreateClaim(ctx, c)
		step(&expand, err, t)
		t = time.Now()
		err = v.Unpublish(ctx, "default", "data", "pod") // grows the filesystem where that could not be done mounted
		step(&resize, err, t)
		t = time.Now()
		err = v.DeleteClaim(ctx, "default", "data")
		step(&remove, err, t)
	}
	for name, d := range map[string]time.Duration{"create": create, "publish": publish, "expand": expand, "unpublish": unpublish, "unpublish-resize": resize, "delete": remove} {
		b.ReportMetric(float64(d.Microseconds())/1000/float64(b.N), name+"-ms")
	}
}

func benchNode(b *testing.B, dir string) *volume.Volumes {
	b.Helper()
	durable, err := store.Open(filepath.Join(dir, "root/state.db"), store.Durable)
	if err != nil {
		b.Fatal(err)
	}
	volatile, err := store.Open(filepath.Join(dir, "run/state.db"), store.Volatile)
	if err != nil {
		b.Fatal(err)
	}
	v, err := volume.Open(context.Background(), volume.Options{
		Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run"), DB: durable, Volatile: volatile,
		Pool: volume.PoolImage, PoolSizeBytes: 60 << 30,
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := errors.Join(v.Teardown(context.Background()), v.Close(), volatile.Close(), durable.Close()); err != nil {
			b.Error(err)
		}
	})
	return v
}
