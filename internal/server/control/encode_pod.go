package control

import (
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/types/known/structpb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/internal/pod"
	"github.com/orlop-io/orlop/internal/server/control/manifest"
)

// spec returns the specification that a status is of.
func specOf(p *pod.Pod, st *pod.ContainerStatus) *pod.Container {
	list := p.Spec.Containers
	if st.Init {
		list = p.Spec.Init
	}
	for i := range list {
		if list[i].Name == st.Name {
			return &list[i]
		}
	}
	return &pod.Container{}
}

func encodePod(p *pod.Pod, object bool) (*orlopv1.Pod, error) {
	out := &orlopv1.Pod{
		Namespace: p.Spec.Namespace, Name: p.Spec.Name, Id: string(p.ID), Labels: p.Spec.Labels,
		Phase: string(p.Phase), Status: oneWord(p), Reason: p.Reason, Message: p.Message, Ready: p.Ready,
		HostNetwork: p.Spec.HostNetwork, RestartPolicy: string(p.Spec.RestartPolicy),
		CreatedAt: stamp(p.CreatedAt), StartedAt: stamp(p.StartedAt), DeletedAt: stamp(p.DeletedAt),
	}
	for _, ip := range p.IPs {
		out.Ips = append(out.Ips, ip.String())
	}
	for i := range p.Containers {
		st := &p.Containers[i]
		spec := specOf(p, st)
		c := &orlopv1.Container{
			Name: st.Name, Role: orlopv1.Container_ROLE_APP, Image: st.Image, ImageId: st.ImageID, Id: string(st.ID),
			State: string(shownState(st)), Reason: st.Reason, Message: st.Message, Ready: st.Ready, Started: st.Started,
			Restarts: int32(st.Restarts), Pid: int32(st.PID), StartedAt: stamp(st.StartedAt), FinishedAt: stamp(st.FinishedAt),
			ExitCode: int32(st.ExitCode), Signal: int32(st.Signal),
		}
		if c.Image == "" {
			c.Image = spec.Image
		}
		if st.Init {
			c.Role = orlopv1.Container_ROLE_INIT
			if spec.Sidecar() {
				c.Role = orlopv1.Container_ROLE_SIDECAR
			}
		}
		for _, port := range spec.Ports {
			m := &orlopv1.PortMapping{Port: uint32(port.Port), HostPort: uint32(port.HostPort), Protocol: port.Protocol, Name: port.Name}
			if port.HostIP.IsValid() {
				m.HostIp = port.HostIP.String()
			}
			c.Ports = append(c.Ports, m)
		}
		out.Containers = append(out.Containers, c)
	}
	if object {
		var err error
		if out.Object, err = toStruct(podObject(p)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// toStruct turns anything that has a JSON form into a message.
func toStruct(v any) (*structpb.Struct, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	s := &structpb.Struct{}
	if err := s.UnmarshalJSON(raw); err != nil {
		return nil, err
	}
	return s, nil
}

// oneWord says in a word how a pod is, as `kubectl get pods` does.
func oneWord(p *pod.Pod) string {
	if !p.DeletedAt.IsZero() {
		return "Terminating"
	}
	switch p.Phase {
	case pod.Succeeded:
		return "Completed"
	case pod.Failed:
		if p.Reason != "" {
			return p.Reason
		}
		return "Error"
	}
	done, inits := 0, len(p.Spec.Init)
	for i := range p.Containers {
		st := &p.Containers[i]
		if !st.Init {
			continue
		}
		ok := st.State == pod.Terminated && st.ExitCode == 0 && st.Reason != "CrashLoopBackOff"
		if specOf(p, st).Sidecar() {
			ok = st.State == pod.RunningNow && st.Started
		}
		if ok {
			done++
			continue
		}
		if st.State != pod.RunningNow && st.Reason != "" && st.Reason != "PodInitializing" && st.Reason != "ContainerCreating" {
			return "Init:" + st.Reason
		}
		if p.StartedAt.IsZero() {
			break
		}
		return fmt.Sprintf("Init:%d/%d", done, inits)
	}
	for i := range p.Containers {
		st := &p.Containers[i]
		if !st.Init && st.State != pod.RunningNow && st.Reason != "" && st.Reason != "Completed" {
			return st.Reason
		}
	}
	if p.Phase == pod.Pending {
		if p.Reason != "" {
			return p.Reason
		}
		return "Pending"
	}
	if !p.Ready {
		return "NotReady"
	}
	return "Running"
}

// podObject returns the pod as Kubernetes' API would.
func podObject(p *pod.Pod) *corev1.Pod {
	o := manifest.EncodePod(&p.Spec)
	o.UID = types.UID(p.ID)
	o.CreationTimestamp = metav1.NewTime(p.CreatedAt)
	if !p.DeletedAt.IsZero() {
		t := metav1.NewTime(p.DeletedAt)
		o.DeletionTimestamp = &t
	}
	st := &o.Status
	st.Phase, st.Reason, st.Message = corev1.PodPhase(p.Phase), p.Reason, p.Message
	for _, ip := range p.IPs {
		st.PodIPs = append(st.PodIPs, corev1.PodIP{IP: ip.String()})
	}
	if len(p.IPs) > 0 {
		st.PodIP = p.IPs[0].String()
	}
	if !p.StartedAt.IsZero() {
		t := metav1.NewTime(p.StartedAt)
		st.StartTime = &t
	}
	initialized, ready := true, true
	for i := range p.Containers {
		c := &p.Containers[i]
		cs := containerStatus(c)
		if c.Init {
			st.InitContainerStatuses = append(st.InitContainerStatuses, cs)
			if specOf(p, c).Sidecar() {
				initialized, ready = initialized && c.Started, ready && c.Ready
			} else {
				initialized = initialized && c.State == pod.Terminated && c.ExitCode == 0
			}
		} else {
			st.ContainerStatuses = append(st.ContainerStatuses, cs)
			ready = ready && c.Ready
		}
	}
	for _, c := range []struct {
		kind corev1.PodConditionType
		ok   bool
	}{{corev1.PodScheduled, true}, {corev1.PodInitialized, initialized}, {corev1.ContainersReady, ready}, {corev1.PodReady, p.Ready}} {
		status := corev1.ConditionFalse
		if c.ok {
			status = corev1.ConditionTrue
		}
		st.Conditions = append(st.Conditions, corev1.PodCondition{Type: c.kind, Status: status})
	}
	return o
}

// shownState is the container's, but that of one which ended and waits to be started again
// is waiting, as Kubernetes has it: how it ended is its last state.
func shownState(c *pod.ContainerStatus) pod.ContainerState {
	if c.State == pod.Terminated && c.Reason == "CrashLoopBackOff" {
		return pod.Waiting
	}
	return c.State
}

func containerStatus(c *pod.ContainerStatus) corev1.ContainerStatus {
	started := c.Started
	o := corev1.ContainerStatus{
		Name: c.Name, Ready: c.Ready, Started: &started, RestartCount: int32(c.Restarts), Image: c.Image, ImageID: c.ImageID,
	}
	if c.ID != "" {
		o.ContainerID = "orlop://" + string(c.ID)
	}
	switch shownState(c) {
	case pod.RunningNow:
		o.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(c.StartedAt)}
	case pod.Terminated:
		o.State.Terminated = &corev1.ContainerStateTerminated{
			ExitCode: int32(c.ExitCode), Signal: int32(c.Signal), Reason: c.Reason, Message: c.Message,
			StartedAt: metav1.NewTime(c.StartedAt), FinishedAt: metav1.NewTime(c.FinishedAt), ContainerID: o.ContainerID,
		}
	default:
		o.State.Waiting = &corev1.ContainerStateWaiting{Reason: c.Reason, Message: c.Message}
	}
	if l := c.Last; l != nil {
		o.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{
			ExitCode: int32(l.ExitCode), Signal: int32(l.Signal), Reason: l.Reason, Message: l.Message,
			StartedAt: metav1.NewTime(l.StartedAt), FinishedAt: metav1.NewTime(l.FinishedAt), ContainerID: "orlop://" + string(l.ID),
		}
	}
	return o
}
