package volume_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/orlop-io/orlop/internal/volume"
	"golang.org/x/sys/unix"
)

// What a volume costs beside a plain directory of the same disk, interleaved so that a
// noisy machine disturbs both: go test -bench IO -run '^$' ./internal/volume
func BenchmarkIO(b *testing.B) {
	ctx := context.Background()
	dir := b.TempDir()
	v := benchNode(b, dir)
	c := volume.Claim{Namespace: "default", Name: "data", SizeBytes: 10 << 30, AccessModes: []string{volume.ReadWriteOnce}}
	if _, err := v.CreateClaim(ctx, c); err != nil {
		b.Fatal(err)
	}
	vol, err := v.Publish(ctx, "default", "data", "pod", false)
	if err != nil {
		b.Fatal(err)
	}
	block := make([]byte, mib)
	sum := map[string]time.Duration{}
	timed := func(what string, f func() error) {
		start := time.Now()
		if err := f(); err != nil {
			b.Fatal(err)
		}
		sum[what] += time.Since(start)
	}
	for b.Loop() {
		for where, at := range map[string]string{"host": dir, "volume": vol} {
			path := filepath.Join(at, "file")
			timed(where+"-write", func() error { return stream(path, block, 256) })
			timed(where+"-sync", func() error { return small(path, 100) })
			timed(where+"-create", func() error {
				for range 20 {
					if err := writeSynced(at, "small", "x"); err != nil {
						return err
					}
				}
				return nil
			})
		}
	}
	for _, w := range []struct {
		what string
		each time.Duration // operations a round
	}{{"write", 256}, {"sync", 100}, {"create", 20}} {
		what := w.what
		b.Logf("%s: host %v, volume %v", what, sum["host-"+what]/time.Duration(b.N)/w.each, sum["volume-"+what]/time.Duration(b.N)/w.each)
		b.ReportMetric(float64(sum["host-"+what])/float64(sum["volume-"+what]), what+"-ratio")
	}
}

// stream writes n blocks around the page cache and makes them durable.
func stream(path string, block []byte, n int) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|unix.O_DIRECT, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	buf, err := unix.Mmap(-1, 0, len(block), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	if err != nil {
		return err
	}
	defer unix.Munmap(buf)
	for range n {
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	return f.Sync()
}

// small writes 4 KiB at scattered places of a file, each made durable.
func small(path string, n int) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for i := range n {
		if _, err := f.WriteAt(make([]byte, 4096), int64(i*7919%65536)*4096); err != nil {
			return err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return err
		}
	}
	return nil
}
