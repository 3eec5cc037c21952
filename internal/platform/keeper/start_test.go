package keeper_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/pidfd/pidfdtest"
)

// A keeper is killed in a start, and the daemon with it or not. What the next keeper makes of
// it is certain before anybody can ask, and a client that asks again comes to the same end: a
// container whose program was executed once, and never one that has ended without.
func TestKilledInStart(t *testing.T) {
	const runs, ends = "echo once; read x", "echo once; exit 3"
	for _, tt := range []struct {
		name, point, script string
		alone               bool // nobody has held anything: the daemon was killed too
		want                keeper.State
	}{
		{"before the gate was opened", "keeper.start.intent-recorded", runs, false, ""},
		{"before the gate was opened, with the daemon", "keeper.start.intent-recorded", runs, true, ""},
		{"it runs", "keeper.start.gate-opened", runs, false, keeper.Running},
		{"it runs, the daemon was killed", "keeper.start.gate-opened", runs, true, keeper.Running},
		{"it has ended", "keeper.start.gate-opened", ends, false, keeper.Stopped},
		// Nobody knows whether it was ever executed, and nobody was told so: it is again.
		{"it has ended, and nobody knows how", "keeper.start.gate-opened", ends, true, ""},
		{"it runs, and that is recorded", "keeper.start.recorded", runs, true, keeper.Running},
		{"it has ended, and that it ran is recorded", "keeper.start.recorded", ends, true, keeper.Stopped},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			r.kill()
			r.spawn("ORLOP_FAULT="+tt.point, "ORLOP_FAULT_ONCE="+filepath.Join(t.TempDir(), "once"))
			s := r.sh("a", tt.script)
			s.Stdin = true
			if _, err := r.c.Run(r.ctx, s); !errors.Is(err, errs.Unavailable) {
				t.Fatalf("run: %v\n%s", err, r.keeperLog())
			}
			select {
			case <-r.c.Done():
			default:
				t.Error("a request failed of a connection that is not said to be lost")
			}
			pid := r.recorded("a").PID
			if tt.alone {
				r.held.Close()
			}
			alone := r.held.Len() == 0 // the keeper may have been killed before it had anything held
			if tt.script == ends {
				r.processEnds(pid, alone)
			}
			r.spawn()
			want, known := tt.want, true
			if tt.script == ends && (alone || !pidfdtest.Keeps(t)) {
				known = false
				if tt.point != "keeper.start.recorded" {
					want = ""
				}
			}
			list, err := r.c.List(r.ctx)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case want == "":
				if len(list) != 0 {
					t.Errorf("of a start that was not made there is %+v\n%s", list, r.keeperLog())
				}
			case len(list) != 1 || list[0].State != want || list[0].PID != pid || list[0].StartedAt.IsZero():
				t.Errorf("%+v, want %s\n%s", list, want, r.keeperLog())
			case want == keeper.Stopped && (list[0].Exit.Known != known || known && list[0].Exit.Code != 3):
				t.Errorf("exit %+v", list[0].Exit)
			}
			again, err := r.c.Run(r.ctx, s)
			if err != nil {
				t.Fatalf("run again: %v\n%s", err, r.keeperLog())
			}
			if same := again.PID == pid; same != (want != "") || again.At.IsZero() {
				t.Errorf("run again: %+v, before process %d", again, pid)
			}
			if tt.script == runs {
				w, err := r.c.StdinWriter(r.ctx, "a")
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintln(w, "end")
				w.Close()
			}
			x := r.wait("a")
			if tt.script == ends && want == "" && !(x.Known && x.Code == 3) {
				t.Errorf("exit %+v", x)
			}
			// What was in a FIFO that nobody held is gone, and what was executed twice may be there twice.
			got := strings.Join(r.log("a"), "|")
			if ok := alone && tt.script == ends && (want == "" || got == "") && strings.Count(got, "once") <= 2; got != "stdout F once" && !ok {
				t.Errorf("log %q", got)
			}
		})
	}
}

// A start that fails while its keeper is killed is made again by who asks again.
func TestKilledInFailedStart(t *testing.T) {
	for _, point := range []string{"keeper.start.gate-opened", "keeper.exit.recorded"} {
		t.Run(point, func(t *testing.T) {
			r := newRig(t)
			r.kill()
			r.spawn("ORLOP_FAULT="+point, "ORLOP_FAULT_ONCE="+filepath.Join(t.TempDir(), "once"))
			s := r.sh("a", "")
			s.OCI.Process.Args = []string{"/bin/bad"} // which is known at execve
			os.WriteFile(r.root+"/bin/bad", []byte("#!/not/there\n"), 0o755)
			if _, err := r.c.Run(r.ctx, s); !errors.Is(err, errs.Unavailable) {
				t.Fatalf("run: %v\n%s", err, r.keeperLog())
			}
			select {
			case <-r.c.Done():
			default:
				t.Error("a request failed of a connection that is not said to be lost")
			}
			r.spawn()
			if _, err := r.c.Run(r.ctx, s); !errors.Is(err, errs.NotFound) {
				t.Errorf("run again: %v\n%s", err, r.keeperLog())
			}
			s.OCI.Process.Args = []string{"/bin/true"}
			if _, err := r.c.Run(r.ctx, s); err != nil {
				t.Errorf("run of what is there: %v\n%s", err, r.keeperLog())
			}
		})
	}
}

// recorded is what the container's record says.
func (r *rig) recorded(id string) keeper.Status {
	r.t.Helper()
	raw, err := os.ReadFile(filepath.Join(r.dir, "containers", id, "state.json"))
	if err != nil {
		r.t.Fatal(err)
	}
	var rec struct{ Status keeper.Status }
	if err := json.Unmarshal(raw, &rec); err != nil {
		r.t.Fatal(err)
	}
	return rec.Status
}

// processEnds waits until a process that has no keeper any more has ended and, with reaped, its
// parent has taken its end.
func (r *rig) processEnds(pid int, reaped bool) {
	r.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if st, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err != nil || !reaped && strings.Contains(string(st), ") Z ") {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatal("the process does not end")
		}
	}
}
