package keeper_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/orlop-io/orlop/internal/platform/keeper"
)

// The keeper is killed again and again under writers; every line is there once.
func TestKilledUnderWriters(t *testing.T) {
	t.Parallel() // it waits more than it works, and names no fault point to the keepers of others
	r := newRig(t)
	const n = 100_000
	script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i; echo err $i >&2; i=$((i+1)); done; exit 3", n)
	for _, id := range []string{"a", "b"} {
		s := r.sh(id, script)
		s.Log.MaxBytes, s.Log.MaxFiles = 1_000_000, 99
		r.run(s)
	}
	kills := 0
	for kills < 100 {
		time.Sleep(time.Duration(5+kills%17) * time.Millisecond) // another instant each time
		r.kill()
		r.spawn()
		kills++
		if l, _ := r.c.List(r.ctx); l[0].State == keeper.Stopped && l[1].State == keeper.Stopped {
			break
		}
	}
	for _, id := range []string{"a", "b"} {
		if x := r.wait(id); !r.ended(x, 3) {
			t.Errorf("%s: exit %+v\n%s", id, x, r.keeperLog())
		}
		next := map[string]int{}
		for _, l := range r.log(id) {
			stream, text, _ := strings.Cut(l, " F ")
			want := fmt.Sprintf("%s %d", map[string]string{"stdout": "line", "stderr": "err"}[stream], next[stream])
			if text != want {
				t.Fatalf("%s after %d kills: %q, want %q", id, kills, l, want)
			}
			next[stream]++
		}
		if next["stdout"] != n || next["stderr"] != n {
			t.Errorf("%s: %d and %d lines of %d", id, next["stdout"], next["stderr"], n)
		}
	}
	t.Logf("the keeper was killed %d times", kills)
}

// The same with output that comes in bursts larger than a FIFO, on both streams at once,
// into files that are rotated all the time.
func TestKilledUnderBursts(t *testing.T) {
	t.Parallel() // it waits more than it works, and names no fault point to the keepers of others
	r := newRig(t)
	r.tools("awk")
	const n = 400_000
	s := r.sh("a", fmt.Sprintf("numbers err %d >&2 & numbers line %d; wait; exit 3", n, n))
	s.Log.MaxBytes, s.Log.MaxFiles = 1_000_000, 99
	os.WriteFile(r.root+"/bin/numbers", []byte("#!/bin/awk -f\nBEGIN { for (i = 0; i < ARGV[2]; i++) print ARGV[1], i }\n"), 0o755)
	r.run(s)
	kills := 0
	for ; kills < 100; kills++ {
		time.Sleep(time.Duration(kills%29) * 200 * time.Microsecond) // another instant each time
		r.kill()
		r.spawn()
		if st, _ := r.c.Status(r.ctx, "a"); st.State == keeper.Stopped {
			break
		}
	}
	if x := r.wait("a"); !r.ended(x, 3) {
		t.Errorf("exit %+v\n%s", x, r.keeperLog())
	}
	lines := r.log("a")
	numbered(t, lines, "stdout", "line", n)
	numbered(t, lines, "stderr", "err", n)
	t.Logf("the keeper was killed %d times", kills)
}

// A container that ends while no keeper lives tells its exit code and its last words.
func TestEndsWithoutKeeper(t *testing.T) {
	r := newRig(t)
	r.run(r.sh("a", "cat; echo last words; exit 42"))
	s := r.sh("b", "read x; echo got $x; exit 43")
	s.Stdin = true
	r.run(s)
	w, err := r.c.StdinWriter(r.ctx, "b")
	if err != nil {
		t.Fatal(err)
	}
	r.wait("a") // stdin is /dev/null
	r.kill()
	fmt.Fprintln(w, "hello")
	w.Close()
	r.processEnds(r.recorded("b").PID, false)
	r.spawn()
	if x := r.wait("b"); !r.ended(x, 43) {
		t.Errorf("exit %+v", x)
	}
	if got := strings.Join(r.log("b"), "|"); got != "stdout F got hello" {
		t.Errorf("log: %s", got)
	}
}
