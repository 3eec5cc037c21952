package keeper_test

import (
	"errors"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/keeper"
)

func TestLifecycle(t *testing.T) {
	r := newRig(t)
	s := r.sh("a", "echo out; echo err >&2; printf 'no end'; exit 7")
	if err := r.c.Create(r.ctx, s); err != nil {
		t.Fatalf("%v\n%s", err, r.keeperLog())
	}
	if st, _ := r.c.Status(r.ctx, "a"); st.State != keeper.Created {
		t.Errorf("state %s", st.State)
	}
	if _, err := r.c.Start(r.ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if x := r.wait("a"); x.Code != 7 || !x.Known || x.Signal != 0 {
		t.Errorf("exit %+v", x)
	}
	got := strings.Join(r.log("a"), "|")
	if got != "stdout F out|stdout F no end|stderr F err" && got != "stdout F out|stderr F err|stdout F no end" && got != "stderr F err|stdout F out|stdout F no end" {
		t.Errorf("log: %s", got)
	}
	if err := r.c.Delete(r.ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.c.Status(r.ctx, "a"); !errors.Is(err, errs.NotFound) {
		t.Errorf("status of a deleted one: %v", err)
	}
	if err := r.c.Delete(r.ctx, "a"); err != nil {
		t.Errorf("deleting again: %v", err)
	}
	r.run(r.sh("b", "sleep 1000"))
	if err := r.c.Delete(r.ctx, "b"); !errors.Is(err, errs.InUse) {
		t.Errorf("deleting a running one: %v", err)
	}
	if err := r.c.Signal(r.ctx, "b", unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if x := r.wait("b"); x.Code != 137 || x.Signal != 9 || x.OOMKilled {
		t.Errorf("exit of a killed one: %+v", x)
	}
}

func TestErrorsLeaveNothing(t *testing.T) {
	r := newRig(t)
	s := r.sh("a", "")
	s.OCI.Process.Args = []string{"/no/such/program"}
	if _, err := r.c.Run(r.ctx, s); !errors.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("a program that does not exist: %v", err)
	}
	s = r.sh("../b", "")
	if _, err := r.c.Run(r.ctx, s); !errors.Is(err, errs.Invalid) {
		t.Errorf("an id that climbs: %v", err)
	}
	s = r.sh("c", "")
	s.OCI.Mounts = append(s.OCI.Mounts, specs.Mount{Destination: "/x", Source: "/no/such/source", Options: []string{"bind"}})
	if _, err := r.c.Run(r.ctx, s); err == nil || !strings.Contains(err.Error(), "/no/such/source") {
		t.Errorf("a source that does not exist: %v", err)
	}
	if l, _ := r.c.List(r.ctx); len(l) != 0 {
		t.Errorf("left: %+v", l)
	}
}

func TestOOM(t *testing.T) {
	r := newRig(t)
	s := r.sh("a", `x=$(cat /dev/zero | tr '\0' x)`)
	limit := int64(16 << 20)
	s.OCI.Process.Args = []string{"/bin/busybox", "tail", "/dev/zero"}
	s.OCI.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
	r.run(s)
	if x := r.wait("a"); !x.OOMKilled || x.Code != 137 {
		t.Errorf("exit %+v", x)
	}
}
