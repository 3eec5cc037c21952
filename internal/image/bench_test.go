package image

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/orlop-io/orlop/internal/image/imagetest"
)

// BenchmarkPull pulls a generated image from a registry in the same process into a
// new store. ORLOP_BENCH_IMAGE=FILES:MIB:LAYERS sets its size: 40000:400:8 is what
// docs/design/images.md reports.
func BenchmarkPull(b *testing.B) {
	files, mib, layers := 2000, 20, 4
	if v := os.Getenv("ORLOP_BENCH_IMAGE"); v != "" {
		var n [3]int
		for i, s := range filepath.SplitList(v) {
			n[i], _ = strconv.Atoi(s)
		}
		files, mib, layers = n[0], n[1], n[2]
	}
	l, err := imagetest.Generate(b.TempDir(), files, int64(mib)<<20, layers)
	if err != nil {
		b.Fatal(err)
	}
	var blobs int64
	for _, d := range l.Image.Layers {
		blobs += d.Size
	}
	name, _ := serve(b, l)
	syscall.Sync() // what generating wrote is not the pull's
	b.SetBytes(blobs)
	for b.Loop() {
		s := open(b, b.TempDir())
		before := cpu()
		start := time.Now()
		if _, err := s.Pull(b.Context(), name, PullOptions{}); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(cpu()-before)/1e9, "cpu-s")
		b.ReportMetric(time.Since(start).Seconds(), "pull-s")
		b.StopTimer()
		s.Close()
		b.StartTimer()
	}
}

// cpu is the processor time of this process so far.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
