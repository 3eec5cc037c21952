package keeper_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/keeper"
)

func TestUpgrade(t *testing.T) {
	r := newRig(t)
	s := r.sh("a", "i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done; read x; exit 9")
	s.Stdin = true
	st := r.run(s)
	s = r.sh("tty", "read x; echo got $x; exit 8")
	s.OCI.Process.Terminal = true
	r.run(s)
	pid := r.c.PID()
	if err := r.c.Upgrade(r.ctx, "/no/such/binary"); !errors.Is(err, errs.Invalid) {
		t.Errorf("upgrade to nothing: %v", err)
	}
	if err := r.c.Upgrade(r.ctx, bin+"/orlop-keeper"); err != nil {
		t.Fatal(err)
	}
	<-r.c.Done()
	r.spawn()
	if r.c.PID() != pid {
		t.Errorf("another process: %d was %d", r.c.PID(), pid)
	}
	if now, err := r.c.Status(r.ctx, "a"); err != nil || now.State != keeper.Running || now.PID != st.PID {
		t.Errorf("after the upgrade: %+v, %v", now, err)
	}
	for id, code := range map[string]int{"a": 9, "tty": 8} {
		w, err := r.c.StdinWriter(r.ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(w, "go")
		w.Close()
		if x := r.wait(id); x.Code != code || !x.Known {
			t.Errorf("%s: exit %+v\n%s", id, x, r.keeperLog())
		}
	}
	if n := len(r.log("a")); n != 500 {
		t.Errorf("%d lines", n)
	}
}
