package manifest

import (
	"fmt"
	"net/url"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/orlop-io/orlop/internal/pod"
)

// probes converts the probes. An init container that is no sidecar ends before
// anything could ask it.
func (d *decoder) probes(path string, c *corev1.Container, init bool, out *pod.Container) {
	sidecar := init && c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	for _, p := range []struct {
		name string
		from *corev1.Probe
		to   **pod.Probe
	}{
		{"startupProbe", c.StartupProbe, &out.Startup},
		{"readinessProbe", c.ReadinessProbe, &out.Readiness},
		{"livenessProbe", c.LivenessProbe, &out.Liveness},
	} {
		if p.from == nil {
			continue
		}
		pp := path + "." + p.name
		if init && !sidecar {
			d.invalid(pp, "an init container is not probed; with restartPolicy: Always it is a sidecar, which is")
		}
		*p.to = d.probe(pp, p.from, c, p.name)
	}
}

func (d *decoder) probe(path string, p *corev1.Probe, c *corev1.Container, name string) *pod.Probe {
	out := &pod.Probe{Period: 10 * time.Second, Timeout: time.Second, SuccessThreshold: 1, FailureThreshold: 3}
	out.InitialDelay = d.seconds(path+".initialDelaySeconds", int64(p.InitialDelaySeconds), 0)
	if p.PeriodSeconds != 0 {
		out.Period = d.seconds(path+".periodSeconds", int64(p.PeriodSeconds), 1)
	}
	if p.TimeoutSeconds != 0 {
		out.Timeout = d.seconds(path+".timeoutSeconds", int64(p.TimeoutSeconds), 1)
	}
	if p.SuccessThreshold != 0 {
		d.atLeast(path+".successThreshold", int64(p.SuccessThreshold), 1)
		out.SuccessThreshold = int(p.SuccessThreshold)
		if name != "readinessProbe" && p.SuccessThreshold > 1 {
			d.invalid(path+".successThreshold", "must be 1 for a %s", name)
		}
	}
	if p.FailureThreshold != 0 {
		d.atLeast(path+".failureThreshold", int64(p.FailureThreshold), 1)
		out.FailureThreshold = int(p.FailureThreshold)
	}
	if v := p.TerminationGracePeriodSeconds; v != nil {
		if name == "readinessProbe" {
			d.invalid(path+".terminationGracePeriodSeconds", "a readiness probe ends nothing; leave it out")
		}
		out.TerminationGrace = d.seconds(path+".terminationGracePeriodSeconds", *v, 1)
	}
	h := &p.ProbeHandler
	n := 0
	if a := h.Exec; a != nil {
		n++
		out.Exec = d.exec(path, a)
	}
	if a := h.HTTPGet; a != nil {
		n++
		out.HTTP = d.http(path+".httpGet", a, c)
	}
	if a := h.TCPSocket; a != nil {
		n++
		out.TCP = d.tcp(path+".tcpSocket", a, c)
	}
	if a := h.GRPC; a != nil {
		n++
		out.GRPC = &pod.GRPCAction{}
		if msg := portNumber(int64(a.Port)); msg != "" {
			d.invalid(path+".grpc.port", "%s", msg)
		} else {
			out.GRPC.Port.Number = uint16(a.Port)
		}
		if a.Service != nil {
			out.GRPC.Service = *a.Service
		}
	}
	if n != 1 && !d.refusedBelow(path) {
		d.exactlyOne(path, n, "exec, httpGet, tcpSocket, grpc")
	}
	return out
}

func (d *decoder) exec(path string, a *corev1.ExecAction) []string {
	if len(a.Command) == 0 {
		d.invalid(path+".exec.command", "must be given")
	}
	return a.Command
}

func (d *decoder) http(path string, a *corev1.HTTPGetAction, c *corev1.Container) *pod.HTTPAction {
	out := &pod.HTTPAction{Host: a.Host, Path: a.Path, Port: d.portRef(path+".port", a.Port, c)}
	oneOf(d, path+".scheme", a.Scheme, corev1.URISchemeHTTP, corev1.URISchemeHTTPS)
	out.TLS = a.Scheme == corev1.URISchemeHTTPS
	if out.Path == "" {
		out.Path = "/"
	}
	if _, err := url.Parse(out.Path); err != nil || strings.ContainsAny(out.Path, "\r\n") {
		d.invalid(path+".path", "%q is not a path", a.Path)
	}
	for i, h := range a.HTTPHeaders {
		hp := fmt.Sprintf("%s.httpHeaders[%d]", path, i)
		d.all(hp+".name", headerName(h.Name))
		if strings.ContainsAny(h.Value, "\r\n\x00") {
			d.invalid(hp+".value", "must be one line")
		}
		out.Headers = append(out.Headers, [2]string{h.Name, h.Value})
	}
	return out
}

func (d *decoder) tcp(path string, a *corev1.TCPSocketAction, c *corev1.Container) *pod.TCPAction {
	return &pod.TCPAction{Host: a.Host, Port: d.portRef(path+".port", a.Port, c)}
}

// portRef takes a number or the name of one of the container's ports.
func (d *decoder) portRef(path string, v intstr.IntOrString, c *corev1.Container) pod.PortRef {
	if v.Type == intstr.Int {
		if msg := portNumber(int64(v.IntVal)); msg != "" {
			if v.IntVal == 0 {
				msg = "must be given"
			}
			d.invalid(path, "%s", msg)
			return pod.PortRef{}
		}
		return pod.PortRef{Number: uint16(v.IntVal)}
	}
	if msg := portName(v.StrVal); msg != "" {
		d.invalid(path, "%s", msg)
		return pod.PortRef{}
	}
	var names []string
	for _, p := range c.Ports {
		if p.Name == v.StrVal {
			return pod.PortRef{Name: v.StrVal}
		}
		names = append(names, p.Name)
	}
	hint := ""
	if near := nearest(v.StrVal, names); near != "" {
		hint = "; did you mean " + near + "?"
	}
	d.invalid(path, "the container has no port of the name %q%s", v.StrVal, hint)
	return pod.PortRef{}
}

// lifecycle converts hooks and the stop signal.
func (d *decoder) lifecycle(path string, c *corev1.Container, s *corev1.PodSpec, init bool, out *pod.Container) {
	l := c.Lifecycle
	if l == nil {
		return
	}
	path += ".lifecycle"
	sidecar := init && c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	if init && !sidecar {
		d.invalid(path, "an init container has no hooks; with restartPolicy: Always it is a sidecar, which may")
	}
	grace := int64(30)
	if v := s.TerminationGracePeriodSeconds; v != nil {
		grace = *v
	}
	for _, h := range []struct {
		name string
		from *corev1.LifecycleHandler
		to   **pod.Hook
	}{{"postStart", l.PostStart, &out.PostStart}, {"preStop", l.PreStop, &out.PreStop}} {
		if h.from == nil {
			continue
		}
		hp := path + "." + h.name
		hook := &pod.Hook{}
		n := 0
		if a := h.from.Exec; a != nil {
			n++
			hook.Exec = d.exec(hp, a)
		}
		if a := h.from.HTTPGet; a != nil {
			n++
			hook.HTTP = d.http(hp+".httpGet", a, c)
		}
		if a := h.from.TCPSocket; a != nil {
			n++
			hook.TCP = d.tcp(hp+".tcpSocket", a, c)
		}
		if a := h.from.Sleep; a != nil {
			n++
			if a.Seconds < 0 || a.Seconds > grace {
				d.invalid(hp+".sleep.seconds", "%d is not between 0 and the termination grace of %d seconds", a.Seconds, grace)
			} else if a.Seconds == 0 {
				d.invalid(hp+".sleep.seconds", "a sleep of nothing; leave the hook out")
			}
			hook.Sleep = time.Duration(min(max(a.Seconds, 0), maxSeconds)) * time.Second
		}
		if n != 1 && !d.refusedBelow(hp) {
			d.exactlyOne(hp, n, "exec, httpGet, tcpSocket, sleep")
		}
		*h.to = hook
	}
	if l.StopSignal != nil {
		out.StopSignal = d.stopSignal(path+".stopSignal", string(*l.StopSignal))
		if s.OS == nil {
			d.invalid(path+".stopSignal", "Kubernetes wants spec.os.name: linux together with it")
		}
	}
}
