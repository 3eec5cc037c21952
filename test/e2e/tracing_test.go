package e2e

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop-io/orlop/internal/base/trace"
	"github.com/orlop-io/orlop/internal/base/trace/tracetest"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

// collect starts a collector on the node's loopback.
func (n *node) collect() *tracetest.Collector {
	n.t.Helper()
	var l net.Listener
	err := namespace.Do(n.netns, func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:4318")
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	c := &tracetest.Collector{}
	s := &http.Server{Handler: c}
	done := make(chan struct{})
	go func() { s.Serve(l); close(done) }()
	n.t.Cleanup(func() { s.Close(); <-done })
	return c
}

// within is a request's context in a trace that a client has begun, as kubelet sends it.
func within(t *testing.T, traceparent string) context.Context {
	return metadata.AppendToOutgoingContext(deadline(t), trace.TraceparentField, traceparent)
}

// A trace that kubelet has begun goes on through the daemon and the keeper to the
// executor's phases; what applies and what the daemon does by itself begin their own; and
// a collector that is away holds up nothing.
func TestTracing(t *testing.T) {
	n := newNode(t)
	collector := n.collect()
	n.configure("tracing: {endpoint: 'http://127.0.0.1:4318'}\n")
	c := n.cri()

	const id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	ctx := within(t, "00-"+id+"-"+parent+"-01")
	conf := c.sandbox()
	begin := time.Now()
	box, err := c.RunPodSandbox(ctx, &v1.RunPodSandboxRequest{Config: conf})
	if err != nil {
		t.Fatalf("%v\n%s", err, n.tail())
	}
	made, err := c.CreateContainer(ctx, &v1.CreateContainerRequest{PodSandboxId: box.PodSandboxId, Config: criContainer("main", "sleep"), SandboxConfig: conf})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.StartContainer(ctx, &v1.StartContainerRequest{ContainerId: made.ContainerId}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ExecSync(ctx, &v1.ExecSyncRequest{ContainerId: made.ContainerId, Cmd: []string{"/bin/tool", "exists", "/nothing"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ContainerStatus(ctx, &v1.ContainerStatusRequest{ContainerId: made.ContainerId}); err != nil {
		t.Fatal(err)
	}
	bad := criContainer("bad", "sleep")
	bad.Command = []string{"/no/such/program"}
	badID := c.create(t, box.PodSandboxId, bad)
	if _, err := c.StartContainer(ctx, &v1.StartContainerRequest{ContainerId: badID}); err == nil {
		t.Error("a program that does not exist was started")
	}
	if _, err := c.StopPodSandbox(ctx, &v1.StopPodSandboxRequest{PodSandboxId: box.PodSandboxId}); err != nil {
		t.Fatal(err)
	}
	// Those that kubelet has not sampled, and looks that it does not ask for, are not traced.
	if _, err := c.RemovePodSandbox(within(t, "00-"+strings.Repeat("c", 32)+"-"+parent+"-00"), &v1.RemovePodSandboxRequest{PodSandboxId: box.PodSandboxId}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ListContainers(deadline(t), &v1.ListContainersRequest{}); err != nil {
		t.Fatal(err)
	}

	const service = "runtime.v1.RuntimeService/"
	run := service + "StartContainer > call keeper run > keeper run"
	want := []string{
		service + "RunPodSandbox > pod sandbox > pod namespaces", service + "RunPodSandbox > pod sandbox > network attach",
		service + "CreateContainer > image use", service + "CreateContainer > image layers", service + "ContainerStatus",
		service + "StartContainer > image layers", run + " > keeper streams", run + " > keeper cgroup",
		run + " > executor plan", run + " > executor clone", run + " > executor set-up", run + " > executor execve",
		service + "ExecSync > call keeper exec > keeper exec > executor clone", service + "ExecSync > wait for process",
		service + "StopPodSandbox > call keeper signal > keeper signal", service + "StopPodSandbox > network detach",
	}
	var list []tracetest.Span
	got := make(map[string]tracetest.Span)
	n.eventually(20*time.Second, func() error {
		list = collector.Trace(id)
		var failed []string
		for _, s := range list {
			got[tracetest.Path(list, s)] = s
			if s.Name == service+"StartContainer" && s.Failed {
				failed = append(failed, s.Err)
			}
		}
		for _, path := range want {
			if _, ok := got[path]; !ok {
				return fmt.Errorf("no span %s; there are:\n%s", path, strings.Join(slices.Sorted(maps.Keys(got)), "\n"))
			}
		}
		if len(failed) != 1 || !strings.Contains(failed[0], "/no/such/program") {
			return fmt.Errorf("StartContainer failed with %q", failed)
		}
		return nil
	})
	t.Logf("kubelet's trace:\n%s", tracetest.Tree(list))
	for path, s := range got {
		if s.Begin.Before(begin) || s.End.Before(s.Begin) || s.End.After(time.Now()) {
			t.Errorf("%s: from %s to %s", path, s.Begin, s.End)
		}
		if strings.Contains(path, " > ") {
			continue
		}
		if s.Parent != parent || s.Kind != "SPAN_KIND_SERVER" || s.Attrs["k8s.pod.name"] != conf.Metadata.Name || s.Attrs["k8s.namespace.name"] != "cri" ||
			s.Attrs["k8s.pod.uid"] != conf.Metadata.Uid || s.Attrs["orlop.sandbox.id"] != "" && s.Attrs["orlop.sandbox.id"] != box.PodSandboxId {
			t.Errorf("%s: %+v", path, s)
		}
	}
	if s := got[service+"CreateContainer"]; s.Attrs["container.id"] != made.ContainerId || s.Attrs["k8s.container.name"] != "main" || s.Attrs["container.image.name"] != "localhost/tool:1" {
		t.Errorf("CreateContainer: %+v", s)
	}
	if log, _ := os.ReadFile(n.log); !strings.Contains(string(log), "trace_id="+id) {
		t.Error("the daemon's log does not name the trace")
	}

	// An applied pod: the request, and what the daemon does for it afterwards.
	n.applyText(`
apiVersion: v1
kind: Pod
metadata: {name: applied}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'localhost/tool:1', args: [sleep]}]
`)
	n.eventually(20*time.Second, func() error {
		if p := n.pod("applied"); len(p.Status.ContainerStatuses) == 0 || p.Status.ContainerStatuses[0].State.Running == nil {
			return fmt.Errorf("it is %s", p.Status.Phase)
		}
		return nil
	})
	n.orlop("delete", "pod", "applied")
	paths := func() map[string]int {
		all := collector.Spans()
		count := make(map[string]int)
		for _, s := range all {
			if s.Trace != id {
				count[tracetest.Path(all, s)]++
			}
		}
		return count
	}
	n.eventually(20*time.Second, func() error {
		count := paths()
		for _, path := range []string{"orlop.v1.Manifests/Apply", "pod sandbox > network attach", "pod container > call keeper run > keeper run > executor clone", "pod removal > network detach"} {
			if count[path] == 0 {
				return fmt.Errorf("no span %s; there are:\n%s", path, strings.Join(slices.Sorted(maps.Keys(count)), "\n"))
			}
		}
		return nil
	})
	for path := range paths() {
		if strings.Contains(path, "RemovePodSandbox") || strings.Contains(path, "ListContainers") || strings.HasPrefix(path, "call keeper") {
			t.Errorf("%s is traced", path)
		}
	}

	collector.Refuse(http.StatusServiceUnavailable)
	pod := c.run(t, c.sandbox())
	c.start(t, pod, criContainer("main", "sleep"))
	c.remove(t, pod)

	metrics, err := n.http("GET", "http://127.0.0.1:9464/metrics", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		`orlop_request_duration_seconds_count{code="OK",method="runtime.v1.RuntimeService/StartContainer",server="cri"} 2`,
		`orlop_request_duration_seconds_count{code="NotFound",method="runtime.v1.RuntimeService/StartContainer",server="cri"} 1`,
		`orlop_request_duration_seconds_count{code="ok",method="orlop.v1.Manifests/Apply",server="control"} 1`,
		`orlop_trace_spans_total{what="sent"} `,
	} {
		if !strings.Contains(metrics, name) {
			t.Errorf("the metrics do not have %s", name)
		}
	}
}
