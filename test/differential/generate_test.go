package differential

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// generated are combinations of the cases that are made by hand: of those that make a
// container, and the same one, with both runtimes. Changes that the same field is the
// object of may undo each other; both runtimes are given the same.
func generated(made []Case, n int) []Case {
	var fit []Case
	for _, c := range made {
		if !differs(c.Name) && !match(unfit, c.Name) {
			fit = append(fit, c)
		}
	}
	var all []Case
	for seed := range n {
		r := rand.New(rand.NewPCG(uint64(seed), 23))
		parts := make([]Case, 2+r.IntN(3))
		name := fmt.Sprintf("seed-%d", seed)
		for i := range parts {
			parts[i] = fit[r.IntN(len(fit))]
			name += "+" + parts[i].Name
		}
		all = append(all, Case{name, func(t testing.TB, b *Bundle) {
			for _, p := range parts {
				p.Make(t, b)
			}
		}})
	}
	return all
}

// unfit are cases that do not go together with others: those that make no container, and
// those that rest on the order of the configuration's lists.
const unfit = "invalid-*|hook-*|hooks-*|flag-*|*bad*|*unknown*|*missing*|*long*|namespace-*|user-namespace*|time-offsets*|mount-*|root-*|cgroups-path-*|" +
	"resources-none|resources-empty|seccomp-*|memory-policy-*|exit-*|stdin-null|*-twice|sysctl-*|net-devices|rdt|selinux|apparmor|mount-label|args-*|cwd-file|scheduler-*|io-priority-*|propagation-*"

// differs tells whether the table knows something of a case in particular.
func differs(name string) bool {
	for _, k := range known {
		if k.cases != "*" && match(k.cases, name) { // what it says may not hold beside others
			return true
		}
	}
	return false
}
