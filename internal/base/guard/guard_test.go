package guard

import (
	"slices"
	"testing"
)

var tested = New("guard.test")

// TestOff: a guard can be off with the tag only, and is on again afterwards.
func TestOff(t *testing.T) {
	if !tested.On() || len(Environ()) != 0 {
		t.Error("the guard is not on at first")
	}
	restore := Without("guard.test")
	if tested.On() == Enabled {
		t.Errorf("the guard is on: %v; guards can be turned off: %v", tested.On(), Enabled)
	}
	if want := []string{"ORLOP_WITHOUT=guard.test"}; Enabled && !slices.Equal(Environ(), want) {
		t.Errorf("a child's environment is %v, want %v", Environ(), want)
	}
	restore()
	if !tested.On() {
		t.Error("the guard is not on again")
	}
	if slices.Contains(List(), "guard.test") != Enabled {
		t.Errorf("the guards are %v", List())
	}
}

// TestNames: a guard that is declared twice or not at all is a mistake of the test.
func TestNames(t *testing.T) {
	if !Enabled {
		return // shown with -tags guards
	}
	for name, fn := range map[string]func(){"twice": func() { New("guard.test") }, "unknown": func() { Without("guard.nope") }} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: it does not panic", name)
				}
			}()
			fn()
		}()
	}
}
