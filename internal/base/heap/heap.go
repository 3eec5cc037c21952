// Package heap gives memory back to the system that a burst of work took.
package heap

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// look is how often GiveBack looks, and for how long it must have been quiet.
	look = 3 * time.Second
	// quiet is how much a process that does nothing but answer probes allocates meanwhile.
	quietBytes = 1 << 20
	// worth is how much must have been allocated for a collection to pay.
	worthBytes = 4 << 20
)

// GiveBack runs until ctx ends. Once the process has become quiet after it allocated
// something, it has the garbage collected and the pages returned: left alone, Go collects
// a heap that does not grow only every two minutes, and keeps what it may need again.
func GiveBack(ctx context.Context) {
	tick := time.NewTicker(look)
	defer tick.Stop()
	var w watch
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if w.due(allocated()) {
				debug.FreeOSMemory()
			}
		}
	}
}

// watch decides when it is time, by what was allocated in all since the process began.
type watch struct{ last, given uint64 }

func (w *watch) due(total uint64) bool {
	quiet := total-w.last < quietBytes
	w.last = total
	if !quiet || total-w.given < worthBytes {
		return false
	}
	w.given = total
	return true
}

func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
