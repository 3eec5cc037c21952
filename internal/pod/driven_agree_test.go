package pod

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/test/programs"
)

// What a list of the keeper's says is older than the records that it is compared with, as
// requests go on meanwhile: a container that was started since is no lost one.
func TestAgree(t *testing.T) {
	bin, remove, err := programs.Build(programs.Program{Package: "cmd/orlop-keeper"}, programs.Program{Package: "cmd/orlop-init"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(remove)
	run := t.TempDir()
	p := idlePods(t, func(o *Options) {
		o.Keeper = keeper.SpawnOptions{Binary: bin + "/orlop-keeper", Init: bin + "/orlop-init", Dir: filepath.Join(run, "k"), LogFile: filepath.Join(run, "log")}
	})
	ctx, d, k := context.Background(), p.driven, p.runtime
	if err := os.MkdirAll(k.o.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	group := fmt.Sprintf("/orlopagree%d", os.Getpid())
	t.Cleanup(func() {
		list, err := k.list(ctx)
		for _, s := range list {
			if err := k.destroy(ctx, s.ID); err != nil {
				t.Error(err)
			}
		}
		if err == nil {
			err = k.shutdown(ctx)
		}
		if err != nil {
			t.Error(err)
		}
		if h, err := cgroup.Open(cgroup.Options{}); err != nil {
			t.Error(err)
		} else if g, err := h.Load(group); err == nil {
			if err := g.Remove(ctx); err != nil {
				t.Error(err)
			}
		}
	})
	pod := d.newPod(sandboxRecord{Sandbox: Sandbox{ID: "box", Config: SandboxConfig{Spec: simple("a")}, State: SandboxReady}})
	d.pods["box"] = pod
	started := func(id string) keeper.Started {
		s, err := k.run(ctx, keeper.Spec{ID: id, Pause: true, Cgroup: group + "/" + id,
			OCI: &specs.Spec{Version: specs.Version, Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}}}}})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	list := func() []keeper.Status {
		l, err := k.list(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for _, tt := range []struct {
		name    string
		running bool // as recorded
		happens func(id string) []keeper.Status
		state   DrivenState
		reason  string
	}{
		{"started after the list", true, func(id string) []keeper.Status { l := list(); started(id); return l }, DrivenRunning, ""},
		{"started, and not recorded", false, func(id string) []keeper.Status { started(id); return list() }, DrivenRunning, ""},
		{"not started", false, func(string) []keeper.Status { return list() }, DrivenCreated, ""},
		{"started after the list, and not recorded", false, func(id string) []keeper.Status { l := list(); started(id); return l }, DrivenCreated, ""},
		{"ended", true, func(id string) []keeper.Status { started(id); ends(t, k, id); return list() }, DrivenExited, "Completed"},
		{"started and ended, and not recorded", false, func(id string) []keeper.Status { started(id); ends(t, k, id); return list() }, DrivenExited, "Completed"},
		{"ended, and removed after the list", true, func(id string) []keeper.Status {
			started(id)
			ends(t, k, id)
			l := list()
			if err := k.remove(ctx, id); err != nil {
				t.Fatal(err)
			}
			return l
		}, DrivenExited, "ContainerStatusUnknown"},
		{"lost", true, func(string) []keeper.Status { return list() }, DrivenExited, "ContainerStatusUnknown"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id := ContainerID(fmt.Sprintf("c%d", len(pod.containers)))
			l := tt.happens(string(id)) // before the keeper's events find it
			c := &drivenContainer{pod: pod, rec: containerRecord{DrivenContainer: DrivenContainer{ID: id, Sandbox: "box", State: DrivenCreated, CreatedAt: time.Now()}}}
			if tt.running {
				c.rec.State, c.rec.StartedAt = DrivenRunning, time.Now()
			}
			d.mu.Lock()
			pod.containers[id], d.all[id] = c, c
			d.mu.Unlock()
			if err := d.agreeAll(ctx, l); err != nil {
				t.Fatal(err)
			}
			st := c.status()
			if st.State != tt.state || st.Reason != tt.reason {
				t.Errorf("%s %s", st.State, st.Reason)
			}
			if tt.state == DrivenRunning && !tt.running && (st.PID == 0 || st.StartedAt.IsZero()) {
				t.Errorf("%+v", st)
			}
			if rec, err := d.containers.Get(string(id)); (err == nil) != (tt.state != DrivenCreated && !(tt.running && tt.state == DrivenRunning)) || err == nil && rec.State != tt.state {
				t.Errorf("recorded is %s, %v", rec.State, err)
			}
		})
	}
}

// ends ends a container's process in the keeper.
func ends(t *testing.T, k *link, id string) {
	t.Helper()
	ctx := context.Background()
	if err := k.signal(ctx, id, unix.SIGTERM, false); err != nil {
		t.Fatal(err)
	}
	if x, err := k.wait(ctx, id); err != nil || x.Code != 0 {
		t.Fatalf("%+v, %v", x, err)
	}
}
