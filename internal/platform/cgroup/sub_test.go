package cgroup

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// A process can be in different groups below one in different hierarchies, and in none that
// is not below it.
func TestSub(t *testing.T) {
	on(t, func(t *testing.T, h *Host) {
		p := root(t, h)
		g, err := h.Create(p+"/c", nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, below := range []string{"/c/a/b", "/c/d", "/c2"} {
			if _, err := h.Create(p+below, nil); err != nil {
				t.Fatal(err)
			}
		}
		type paths = map[string]string
		cases := []struct {
			name  string
			paths paths
			want  paths // by controller, what is below /c; "" is of all others
			kind  *errs.Kind
		}{
			{"nothing", nil, paths{"": ""}, nil},
			{"itself", paths{"": "/"}, paths{"": ""}, nil},
			{"all", paths{"": "a/b"}, paths{"": "/a/b"}, nil},
			{"all, absolute", paths{"": "/d/"}, paths{"": "/d"}, nil},
			{"not there", paths{"": "x"}, nil, errs.NotFound},
			{"controller's not there", paths{"memory": "x"}, nil, errs.NotFound},
			{"above", paths{"": ".."}, nil, errs.Invalid},
			{"beside", paths{"": "../c2"}, nil, errs.Invalid},
			{"beside, of a controller", paths{"memory": "a/../../c2"}, nil, errs.Invalid},
			{"unknown", paths{"nothing": "a"}, nil, errs.Invalid},
			{"one controller", paths{"memory": "a"}, paths{"memory": "/a"}, nil},
			{"two", paths{"memory": "a", "pids": "d"}, paths{"memory": "/a", "pids": "/d"}, nil},
		}
		if h.layout.Mode == V2 { // one hierarchy: a path of a controller is that of all
			cases[len(cases)-2].paths, cases[len(cases)-2].want = paths{"memory": "d"}, paths{"": "/d"}
			cases[len(cases)-1].want, cases[len(cases)-1].kind = nil, errs.Invalid
			cases = cases[2:] // no process may be in a group that hands controllers down
		}
		for _, tt := range cases {
			s, err := g.Sub(tt.paths)
			if tt.kind != nil {
				if !errors.Is(err, tt.kind) {
					t.Errorf("%s: %v, want %v", tt.name, err, tt.kind)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
				continue
			}
			c := spawn(t, s, "wait")
			c.line(t)
			list, _ := os.ReadFile("/proc/" + strconv.Itoa(c.Process.Pid) + "/cgroup")
			for line := range strings.Lines(string(list)) {
				part := strings.SplitN(strings.TrimSpace(line), ":", 3)
				rel, inside := strings.CutPrefix(part[2], p+"/c")
				if !inside {
					continue // a hierarchy in which the group has no directory
				}
				want, ok := tt.want[part[1]]
				if !ok {
					want = tt.want[""]
				}
				if rel != want {
					t.Errorf("%s: in %s the process is in %q, want %q", tt.name, part[1], rel, want)
				}
			}
		}
	})
}
