// Package heap gives memory back to the system that a burst of work took.
package heap

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// look is how often GiveBack looks, and for how long it must have been quiet.
	look = 3 * time.Second
	// quiet is how much a process that does nothing but answer probes allocates meanwhile.
	quietBytes = 1 << 20
	// worth is how much there must be to gain for a collection to pay.
	worthBytes = 2 << 20
)

// GiveBack runs until ctx ends. Once the process has become quiet and holds memory that it
// may not need, it frees that: left alone, Go collects a heap that does not grow only every
// two minutes, and keeps what it may need again.
func GiveBack(ctx context.Context) {
	tick := time.NewTicker(look)
	defer tick.Stop()
	var w watch
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if w.due(read()) {
				Free()
			}
		}
	}
}

// Free has the garbage collected and the pages returned. One collection leaves what is in a
// sync.Pool, and halves stacks that have grown, so there are two.
func Free() {
	runtime.GC()
	debug.FreeOSMemory()
}

// usage is what the runtime says of the heap, in bytes.
type usage struct {
	allocated uint64 // since the process began
	gain      uint64 // what a collection might free: what came since the last one, and what is kept unused
}

// watch decides when it is time.
type watch struct{ last uint64 }

func (w *watch) due(u usage) bool {
	quiet := u.allocated-w.last < quietBytes
	w.last = u.allocated
	return quiet && u.gain >= worthBytes
}

func read() usage {
	s := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(s)
	live, objects := s[1].Value.Uint64(), s[2].Value.Uint64()
	return usage{allocated: s[0].Value.Uint64(), gain: objects - min(live, objects) + s[3].Value.Uint64()}
}
