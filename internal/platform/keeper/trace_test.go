package keeper_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/trace"
	"github.com/orlop-io/orlop/internal/platform/keeper"
)

// paths are the names of spans with those above them.
func paths(list []trace.Timing) (all []string) {
	for _, t := range list {
		name := t.Name
		for p := t.Parent; p >= 0; p = list[p].Parent {
			name = list[p].Name + " > " + name
		}
		all = append(all, name)
	}
	return all
}

// What the keeper did for a request that is traced comes back with its answer, in the
// client's trace: each step within the one above, in order.
func TestTrace(t *testing.T) {
	r := newRig(t)
	parent := trace.Parent{Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
	ctx, rec := trace.Record(r.ctx, "test", parent)
	if _, err := r.c.Run(ctx, r.sh("a", "sleep 1000")); err != nil {
		t.Fatalf("%v\n%s", err, r.keeperLog())
	}
	e, err := r.c.Exec(ctx, "a", keeper.ExecSpec{Process: &specs.Process{Args: []string{"/bin/sh", "-c", "exit 3"}, Cwd: "/"}})
	if err != nil {
		t.Fatal(err)
	}
	if x, err := e.Wait(ctx); err != nil || x.Code != 3 {
		t.Errorf("the command ended with %+v, %v", x, err)
	}
	missing := r.sh("b", "")
	missing.OCI.Process.Args = []string{"/no/such/program"}
	if _, err := r.c.Run(ctx, missing); !errors.Is(err, errs.NotFound) {
		t.Errorf("a program that does not exist: %v", err)
	}
	list := rec.Timings(nil)
	all := paths(list)
	var got []string
	inits := make(map[string][]string) // what init did, by what it is below
	for _, p := range all {
		if i := strings.LastIndex(p, " > init "); i >= 0 {
			inits[p[:i]] = append(inits[p[:i]], p[i+len(" > init "):])
		} else {
			got = append(got, p)
		}
	}
	for above, want := range map[string][]string{
		"run": {"begin", "root", "mounts", "pivot", "process", "begin", "root", "mounts", "pivot", "process"}, "exec": nil, // it begins without init
	} {
		above = "test > call keeper " + above + " > keeper " + above + " > executor set-up"
		if got := inits[above]; !slices.Equal(got, want) {
			t.Errorf("%s: phases of init are %q, want %q", above, got, want)
		}
	}
	create := []string{"call keeper run", "call keeper run > keeper run"}
	for _, step := range []string{"keeper streams", "keeper cgroup", "executor plan", "executor clone", "executor set-up", "executor execve"} {
		create = append(create, "call keeper run > keeper run > "+step)
	}
	exec := []string{"call keeper exec", "call keeper exec > keeper exec"}
	for _, step := range []string{"executor plan", "executor clone", "executor set-up", "executor execve"} {
		exec = append(exec, "call keeper exec > keeper exec > "+step)
	}
	want := []string{"test"}
	for _, p := range slices.Concat(create, exec, []string{"wait for process"}, create[:len(create)-1]) { // the last has come as far as the program
		want = append(want, "test > "+p)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	var failed []string
	for i, s := range list {
		if s.End < s.Begin {
			t.Errorf("%s ends before it begins", all[i])
		}
		if s.Parent >= 0 && (s.Begin < list[s.Parent].Begin || s.End > list[s.Parent].End) {
			t.Errorf("%s is not within the one above", all[i])
		}
		if strings.Contains(s.Err, "/no/such/program") {
			failed = append(failed, s.Name)
		}
	}
	if want := []string{"call keeper run", "keeper run", "executor set-up", "init process"}; !slices.Equal(failed, want) {
		t.Errorf("the missing program is the error of %q, want %q", failed, want)
	}
	// Who does not ask is told nothing.
	ctx, rec = trace.Record(context.Background(), "test", trace.Parent{})
	if _, err := r.c.Run(ctx, r.sh("c", "exit 0")); err != nil || rec != nil {
		t.Error(err, rec)
	}
	r.wait("c")
}
