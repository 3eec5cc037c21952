//go:build guards

package guard

import (
	"slices"
	"strings"
	"sync"
	"syscall"
)

// Guard is one protection.
type Guard struct{ name string }

const variable = "ORLOP_WITHOUT"

var (
	mu    sync.RWMutex
	names []string
	off   = fromEnvironment()
)

func fromEnvironment() []string {
	v, _ := syscall.Getenv(variable)
	return strings.FieldsFunc(v, func(r rune) bool { return r == ',' })
}

// New declares the guard of that name. It panics on a name declared twice: a guard must
// say exactly one protection.
func New(name string) Guard {
	mu.Lock()
	defer mu.Unlock()
	if slices.Contains(names, name) {
		panic("guard: declared twice: " + name)
	}
	names = append(names, name)
	return Guard{name}
}

// On tells whether the guard protects.
func (g Guard) On() bool {
	mu.RLock()
	defer mu.RUnlock()
	return !slices.Contains(off, g.name)
}

// Window gives an attacker a moment.
func (g Guard) Window() {
	ts := syscall.Timespec{Nsec: 300_000}
	syscall.Nanosleep(&ts, nil)
}

// List returns the names of all guards of this binary, sorted.
func List() []string {
	mu.RLock()
	defer mu.RUnlock()
	return slices.Sorted(slices.Values(names))
}

// Environ returns what the environment of a child has to have so that the guards that
// are off here are off there.
func Environ() []string {
	mu.RLock()
	defer mu.RUnlock()
	if len(off) == 0 {
		return nil
	}
	return []string{variable + "=" + strings.Join(off, ",")}
}

// Without turns guards off until restore is called. It panics on a name that no guard
// has. It is the process's: tests that use it do not run in parallel.
func Without(without ...string) (restore func()) {
	mu.Lock()
	defer mu.Unlock()
	for _, n := range without {
		if !slices.Contains(names, n) {
			panic("guard: there is no guard " + n)
		}
	}
	before := off
	off = append(slices.Clone(off), without...)
	return func() {
		mu.Lock()
		defer mu.Unlock()
		off = before
	}
}

// Enabled tells whether guards can be turned off.
const Enabled = true
