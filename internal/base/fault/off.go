//go:build !faults

package fault

// Point is a place at which a test may kill the process.
type Point struct{}

// New declares the point of that name.
func New(name string) Point { return Point{} }

// Hit does nothing in this build.
func (Point) Hit() {}

// List returns nothing in this build.
func List() []string { return nil }

// Enabled tells whether fault points are compiled in.
const Enabled = false
