package control

import (
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/internal/pod"
)

func status(name string, state pod.ContainerState, reason string, change ...func(*pod.ContainerStatus)) pod.ContainerStatus {
	s := pod.ContainerStatus{Name: name, State: state, Reason: reason, Started: state == pod.RunningNow, Ready: state == pod.RunningNow}
	for _, c := range change {
		c(&s)
	}
	return s
}

func isInit(s *pod.ContainerStatus) { s.Init = true }

// The word for a pod is the one that kubectl would show.
func TestOneWord(t *testing.T) {
	spec := pod.Spec{
		Init:       []pod.Container{{Name: "first"}, {Name: "beside", Restart: pod.RestartAlways}, {Name: "second"}},
		Containers: []pod.Container{{Name: "main"}},
	}
	now := time.Now()
	running := status("main", pod.RunningNow, "")
	waiting := status("main", pod.Waiting, "PodInitializing")
	done := func(name string) pod.ContainerStatus { return status(name, pod.Terminated, "Completed", isInit) }
	beside := status("beside", pod.RunningNow, "", isInit)
	for _, tt := range []struct {
		want string
		p    pod.Pod
	}{
		{"Pending", pod.Pod{Phase: pod.Pending}},
		{"FailedCreatePodSandBox", pod.Pod{Phase: pod.Pending, Reason: "FailedCreatePodSandBox"}},
		{"Init:0/3", pod.Pod{Phase: pod.Pending, StartedAt: now, Containers: []pod.ContainerStatus{status("first", pod.RunningNow, "", isInit), waiting}}},
		{"Init:1/3", pod.Pod{Phase: pod.Pending, StartedAt: now, Containers: []pod.ContainerStatus{done("first"), status("beside", pod.Waiting, "PodInitializing", isInit), waiting}}},
		{"Init:2/3", pod.Pod{Phase: pod.Pending, StartedAt: now, Containers: []pod.ContainerStatus{done("first"), beside, status("second", pod.RunningNow, "", isInit), waiting}}},
		{"Init:ImagePullBackOff", pod.Pod{Phase: pod.Pending, StartedAt: now, Containers: []pod.ContainerStatus{done("first"), status("beside", pod.Waiting, "ImagePullBackOff", isInit), waiting}}},
		{"Init:CrashLoopBackOff", pod.Pod{Phase: pod.Pending, StartedAt: now, Containers: []pod.ContainerStatus{status("first", pod.Terminated, "CrashLoopBackOff", isInit), waiting}}},
		{"ImagePullBackOff", pod.Pod{Phase: pod.Pending, StartedAt: now, Containers: []pod.ContainerStatus{done("first"), beside, done("second"), status("main", pod.Waiting, "ImagePullBackOff")}}},
		{"CrashLoopBackOff", pod.Pod{Phase: pod.Running, StartedAt: now, Containers: []pod.ContainerStatus{done("first"), beside, done("second"), status("main", pod.Terminated, "CrashLoopBackOff")}}},
		{"NotReady", pod.Pod{Phase: pod.Running, StartedAt: now, Containers: []pod.ContainerStatus{done("first"), beside, done("second"), running}}},
		{"Running", pod.Pod{Phase: pod.Running, Ready: true, StartedAt: now, Containers: []pod.ContainerStatus{done("first"), beside, done("second"), running}}},
		{"Completed", pod.Pod{Phase: pod.Succeeded}},
		{"Error", pod.Pod{Phase: pod.Failed}},
		{"DeadlineExceeded", pod.Pod{Phase: pod.Failed, Reason: "DeadlineExceeded"}},
		{"Terminating", pod.Pod{Phase: pod.Running, Ready: true, DeletedAt: now}},
	} {
		tt.p.Spec = spec
		if got := oneWord(&tt.p); got != tt.want {
			t.Errorf("%s instead of %s", got, tt.want)
		}
	}
}

// The object has Kubernetes' status, and the message the same facts.
func TestPodObject(t *testing.T) {
	start := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	p := pod.Pod{
		ID: "1-2", Phase: pod.Running, Ready: true, CreatedAt: start, StartedAt: start.Add(time.Second),
		IPs: []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")},
		Spec: pod.Spec{
			Key:  pod.Key{Namespace: "ns", Name: "app"},
			Init: []pod.Container{{Name: "first", Image: "a:1"}, {Name: "beside", Restart: pod.RestartAlways}},
			Containers: []pod.Container{{Name: "main", Image: "b:1", Ports: []pod.Port{
				{Port: 80, HostPort: 8080, HostIP: netip.MustParseAddr("127.0.0.1"), Protocol: "TCP", Name: "http"}}}},
		},
		Containers: []pod.ContainerStatus{
			status("first", pod.Terminated, "Completed", isInit),
			status("beside", pod.RunningNow, "", isInit),
			status("main", pod.RunningNow, "", func(s *pod.ContainerStatus) {
				s.ID, s.ImageID, s.Restarts, s.StartedAt = "abc", "sha256:1", 2, start
				s.Last = &pod.Termination{ID: "old", Reason: "OOMKilled", ExitCode: 137, Signal: 9, FinishedAt: start}
			}),
		},
	}
	o := podObject(&p)
	main := o.Status.ContainerStatuses[0]
	if o.Status.PodIP != "10.0.0.2" || len(o.Status.PodIPs) != 2 || o.UID != "1-2" || o.Status.StartTime == nil || len(o.Status.InitContainerStatuses) != 2 {
		t.Errorf("%+v", o.Status)
	}
	if main.ContainerID != "orlop://abc" || main.RestartCount != 2 || main.State.Running == nil || main.LastTerminationState.Terminated.Reason != "OOMKilled" {
		t.Errorf("%+v", main)
	}
	for _, c := range o.Status.Conditions {
		if c.Status != corev1.ConditionTrue {
			t.Errorf("%+v", c)
		}
	}
	p.Containers[2].Ready, p.Ready = false, false
	conditions := map[corev1.PodConditionType]corev1.ConditionStatus{}
	for _, c := range podObject(&p).Status.Conditions {
		conditions[c.Type] = c.Status
	}
	if conditions[corev1.PodInitialized] != corev1.ConditionTrue || conditions[corev1.ContainersReady] != corev1.ConditionFalse || conditions[corev1.PodReady] != corev1.ConditionFalse {
		t.Errorf("%v", conditions)
	}
	m, err := encodePod(&p, true)
	if err != nil {
		t.Fatal(err)
	}
	if m.Containers[0].Role != orlopv1.Container_ROLE_INIT || m.Containers[1].Role != orlopv1.Container_ROLE_SIDECAR || m.Containers[2].Role != orlopv1.Container_ROLE_APP {
		t.Errorf("%v", m.Containers)
	}
	// What a status does not say of the image is in the specification.
	if m.Containers[0].Image != "a:1" || m.Containers[2].Ports[0].HostPort != 8080 || m.Containers[2].Ports[0].HostIp != "127.0.0.1" || m.Object.Fields["kind"].GetStringValue() != "Pod" {
		t.Errorf("%v", m)
	}
}
