package manifest

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/orlop-io/orlop/internal/image"
	"github.com/orlop-io/orlop/internal/pod"
)

func (d *decoder) container(path string, c *corev1.Container, s *corev1.PodSpec, init bool, volumes map[string]*pod.Volume) pod.Container {
	out := pod.Container{
		Name: c.Name, Image: c.Image, Command: c.Command, Args: c.Args, WorkingDir: c.WorkingDir,
		Stdin: c.Stdin, StdinOnce: c.StdinOnce, TTY: c.TTY,
		TerminationMessagePath: c.TerminationMessagePath, TerminationMessagePolicy: string(c.TerminationMessagePolicy),
	}
	if c.Name == "" {
		d.invalid(path+".name", "must be given")
	} else {
		d.all(path+".name", dnsLabel(c.Name))
	}
	d.image(path, c, &out)
	if c.RestartPolicy != nil {
		out.Restart = pod.RestartPolicy(*c.RestartPolicy)
		oneOf(d, path+".restartPolicy", *c.RestartPolicy, corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyOnFailure, corev1.ContainerRestartPolicyNever)
	}
	d.env(path, c, &out)
	d.ports(path, c, s.HostNetwork, &out)
	out.Resources = d.resources(path+".resources", &c.Resources, false)
	privileged := c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
	d.mounts(path, c, volumes, privileged, &out)
	d.containerSecurity(path+".securityContext", c.SecurityContext, &out.Security)
	oneOf(d, path+".terminationMessagePolicy", c.TerminationMessagePolicy, corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)
	if p := c.TerminationMessagePath; p != "" && !strings.HasPrefix(p, "/") {
		d.invalid(path+".terminationMessagePath", "%q must be absolute", p)
	}
	if w := c.WorkingDir; w != "" && !strings.HasPrefix(w, "/") {
		d.invalid(path+".workingDir", "%q must be absolute", w)
	}
	for name, words := range map[string][]string{"command": c.Command, "args": c.Args} {
		for i, w := range words {
			if strings.ContainsRune(w, 0) {
				d.invalid(fmt.Sprintf("%s.%s[%d]", path, name, i), "a zero byte cannot be part of an argument")
			}
		}
	}
	d.probes(path, c, init, &out)
	d.lifecycle(path, c, s, init, &out)
	return out
}

// image checks the name and chooses the pull policy as Kubernetes does: always for the
// tag latest, else only what is missing.
func (d *decoder) image(path string, c *corev1.Container, out *pod.Container) {
	name := image.Name{}
	switch {
	case c.Image == "":
		d.invalid(path+".image", "must be given")
	default:
		var err error
		if name, err = image.ParseName(c.Image); err != nil {
			d.invalid(path+".image", "%v", err)
		}
	}
	oneOf(d, path+".imagePullPolicy", c.ImagePullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
	out.PullPolicy = pod.PullPolicy(c.ImagePullPolicy)
	if out.PullPolicy == "" {
		out.PullPolicy = pod.PullIfNotPresent
		if name.Digest == "" && (name.Tag == "" || name.Tag == "latest") {
			out.PullPolicy = pod.PullAlways
		}
	}
}

func (d *decoder) env(path string, c *corev1.Container, out *pod.Container) {
	for i, e := range c.Env {
		p := fmt.Sprintf("%s.env[%d]", path, i)
		v := pod.EnvVar{Name: e.Name, Value: e.Value}
		if e.Name == "" {
			d.invalid(p+".name", "must be given")
		} else {
			d.all(p+".name", envName(e.Name))
		}
		if strings.ContainsRune(e.Value, 0) {
			d.invalid(p+".value", "a zero byte cannot be part of a variable")
		}
		if f := e.ValueFrom; f != nil {
			p += ".valueFrom"
			if e.Value != "" {
				d.invalid(p, "cannot be together with value")
			}
			n := 0
			if r := f.FieldRef; r != nil {
				n++
				v.Field = d.fieldRef(p+".fieldRef", r, false)
			}
			if r := f.ResourceFieldRef; r != nil {
				n++
				v.Resource = d.resourceRef(p+".resourceFieldRef", r, false)
			}
			if r := f.ConfigMapKeyRef; r != nil {
				n++
				v.ConfigMap = d.keyRef(p+".configMapKeyRef", r.Name, r.Key, r.Optional)
			}
			if r := f.SecretKeyRef; r != nil {
				n++
				v.Secret = d.keyRef(p+".secretKeyRef", r.Name, r.Key, r.Optional)
			}
			d.exactlyOne(p, n, "fieldRef, resourceFieldRef, configMapKeyRef, secretKeyRef")
		}
		out.Env = append(out.Env, v)
	}
	for i, e := range c.EnvFrom {
		p := fmt.Sprintf("%s.envFrom[%d]", path, i)
		v := pod.EnvSource{Prefix: e.Prefix}
		if e.Prefix != "" {
			d.all(p+".prefix", envName(e.Prefix))
		}
		n := 0
		if r := e.ConfigMapRef; r != nil {
			n++
			v.ConfigMap, v.Optional = d.refName(p+".configMapRef.name", r.Name), isTrue(r.Optional)
		}
		if r := e.SecretRef; r != nil {
			n++
			v.Secret, v.Optional = d.refName(p+".secretRef.name", r.Name), isTrue(r.Optional)
		}
		d.exactlyOne(p, n, "configMapRef, secretRef")
		out.EnvFrom = append(out.EnvFrom, v)
	}
}

func isTrue(b *bool) bool { return b != nil && *b }

func (d *decoder) exactlyOne(path string, n int, of string) {
	switch {
	case n == 0:
		d.invalid(path, "one of %s must be given", of)
	case n > 1:
		d.invalid(path, "only one of %s may be given", of)
	}
}

func (d *decoder) refName(path, name string) string {
	if name == "" {
		d.invalid(path, "must be given")
	} else {
		d.all(path, dnsSubdomain(name))
	}
	return name
}

func (d *decoder) keyRef(path, name, key string, optional *bool) *pod.KeyRef {
	d.refName(path+".name", name)
	if key == "" {
		d.invalid(path+".key", "must be given")
	} else {
		d.all(path+".key", configKey(key))
	}
	return &pod.KeyRef{Name: name, Key: key, Optional: isTrue(optional)}
}

// Fields of the downward API: in variables, and as files.
var (
	envFields = []string{"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"}
	// fileFields may not name what is known only once the pod runs.
	fileFields = []string{"metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels", "metadata.annotations"}
)

func (d *decoder) fieldRef(path string, r *corev1.ObjectFieldSelector, file bool) string {
	if r.APIVersion != "" && r.APIVersion != "v1" {
		d.invalid(path+".apiVersion", "%q is not v1", r.APIVersion)
	}
	f := r.FieldPath
	path += ".fieldPath"
	if f == "" {
		d.invalid(path, "must be given")
		return f
	}
	for _, p := range []string{"metadata.labels", "metadata.annotations"} {
		if key, ok := strings.CutPrefix(f, p+"['"); ok {
			key, ok = strings.CutSuffix(key, "']")
			if !ok {
				d.invalid(path, "%q must end with ']", f)
			} else {
				d.all(path, labelKey(strings.ToLower(key)))
			}
			return f
		}
	}
	known := envFields
	if file {
		known = fileFields
	}
	for _, k := range known {
		if f == k {
			return f
		}
	}
	hint := ""
	if near := nearest(f, known); near != "" {
		hint = "; did you mean " + near + "?"
	}
	d.invalid(path, "%q cannot be shown; supported: %s, metadata.labels['KEY'], metadata.annotations['KEY']%s", f, strings.Join(known, ", "), hint)
	return f
}

func (d *decoder) ports(path string, c *corev1.Container, hostNetwork bool, out *pod.Container) {
	names := map[string]bool{}
	for i, p := range c.Ports {
		pp := fmt.Sprintf("%s.ports[%d]", path, i)
		port := pod.Port{Name: p.Name, Protocol: string(p.Protocol)}
		if p.Name != "" {
			d.all(pp+".name", portName(p.Name))
			if names[p.Name] {
				d.invalid(pp+".name", "%q is the name of another port of this container", p.Name)
			}
			names[p.Name] = true
		}
		if p.ContainerPort == 0 {
			d.invalid(pp+".containerPort", "must be given")
		} else if msg := portNumber(int64(p.ContainerPort)); msg != "" {
			d.invalid(pp+".containerPort", "%s", msg)
		} else {
			port.Port = uint16(p.ContainerPort)
		}
		if p.HostPort != 0 {
			if msg := portNumber(int64(p.HostPort)); msg != "" {
				d.invalid(pp+".hostPort", "%s", msg)
			} else {
				port.HostPort = uint16(p.HostPort)
			}
		}
		if hostNetwork {
			if p.HostPort != 0 && p.HostPort != p.ContainerPort {
				d.invalid(pp+".hostPort", "with hostNetwork it must be the containerPort, %d", p.ContainerPort)
			}
			port.HostPort = port.Port
		}
		if p.HostIP != "" {
			port.HostIP = d.address(pp+".hostIP", p.HostIP)
		}
		if port.Protocol == "" {
			port.Protocol = string(corev1.ProtocolTCP)
		}
		oneOf(d, pp+".protocol", p.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
		out.Ports = append(out.Ports, port)
	}
}

// stopSignal checks a signal's name: SIGTERM, SIGRTMIN+3.
func (d *decoder) stopSignal(path string, s string) string {
	ok := unix.SignalNum(s) != 0
	for _, base := range []string{"SIGRTMIN", "SIGRTMAX"} {
		if rest, is := strings.CutPrefix(s, base); is {
			var n int
			if _, err := fmt.Sscanf(rest, "%d", &n); rest == "" || err == nil && fmt.Sprintf("%+d", n) == rest && n >= -30 && n <= 30 {
				ok = true
			}
		}
	}
	if !ok {
		d.invalid(path, "%q is not the name of a signal; examples: SIGTERM, SIGQUIT, SIGRTMIN+3", s)
	}
	return s
}
