//go:build !race

package programs

// Race tells whether this binary has the race detector.
const Race = false
