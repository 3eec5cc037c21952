package differential

import "testing"

// corpus are all cases that are made by hand.
func corpus() []Case {
	return []Case{
		{"base", func(testing.TB, *Bundle) {}},
	}
}
