//go:build faults

package fault

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// Point is a place at which a test may kill the process.
type Point struct {
	name  string
	count *atomic.Int64
}

var (
	mu    sync.Mutex
	names []string
)

// New declares the point of that name. It panics on a name declared twice:
// a point must say exactly one place.
func New(name string) Point {
	mu.Lock()
	defer mu.Unlock()
	if slices.Contains(names, name) {
		panic("fault: point declared twice: " + name)
	}
	names = append(names, name)
	return Point{name, new(atomic.Int64)}
}

// Hit kills the process if the environment names this point.
func (p Point) Hit() {
	want, nth, ok := strings.Cut(os.Getenv("ORLOP_FAULT"), ":")
	if want != p.name {
		return
	}
	n := int64(1)
	if ok {
		n, _ = strconv.ParseInt(nth, 10, 64)
	}
	if p.count.Add(1) != n {
		return
	}
	if once := os.Getenv("ORLOP_FAULT_ONCE"); once != "" {
		f, err := os.OpenFile(once, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return
		}
		f.WriteString(p.name + "\n")
		f.Close()
	}
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // the signal takes this thread before it returns to Go; wait for it
}

// List returns the names of all points compiled into this binary, sorted.
func List() []string {
	mu.Lock()
	defer mu.Unlock()
	return slices.Sorted(slices.Values(names))
}

// Enabled tells whether fault points are compiled in.
const Enabled = true
