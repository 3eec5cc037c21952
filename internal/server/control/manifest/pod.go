package manifest

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/orlop-io/orlop/internal/pod"
)

// maxSeconds keeps durations within what time.Duration holds.
const maxSeconds = math.MaxInt32

func (d *decoder) seconds(path string, v, least int64) time.Duration {
	d.atLeast(path, v, least)
	if v > maxSeconds {
		d.invalid(path, "%d seconds is too long; at most %d", v, int64(maxSeconds))
		return 0
	}
	return time.Duration(v) * time.Second
}

// pod validates p, with Kubernetes' defaults, and converts it.
func (d *decoder) pod(p *corev1.Pod) *pod.Spec {
	s, out := &p.Spec, &pod.Spec{
		Key:         pod.Key{Namespace: p.Namespace, Name: p.Name},
		Labels:      p.Labels,
		Annotations: p.Annotations,
	}
	out.RestartPolicy = pod.RestartAlways
	if s.RestartPolicy != "" {
		out.RestartPolicy = pod.RestartPolicy(s.RestartPolicy)
		oneOf(d, "spec.restartPolicy", s.RestartPolicy, corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)
	}
	out.TerminationGrace = 30 * time.Second
	if v := s.TerminationGracePeriodSeconds; v != nil {
		out.TerminationGrace = d.seconds("spec.terminationGracePeriodSeconds", *v, 0)
	}
	if v := s.ActiveDeadlineSeconds; v != nil {
		out.ActiveDeadline = d.seconds("spec.activeDeadlineSeconds", *v, 1)
	}
	out.HostNetwork, out.HostPID, out.HostIPC = s.HostNetwork, s.HostPID, s.HostIPC
	if v := s.HostUsers; v != nil && !*v {
		out.OwnUsers = true
	}
	if v := s.ShareProcessNamespace; v != nil && *v {
		out.SharePID = true
		if s.HostPID {
			d.invalid("spec.shareProcessNamespace", "cannot be together with hostPID: the pod has no process namespace of its own to share")
		}
	}
	if v := s.RuntimeClassName; v != nil && *v != "" { // it names the handler itself: there are no RuntimeClasses
		d.all("spec.runtimeClassName", dnsLabel(*v))
		out.Handler = *v
	}
	if s.Hostname != "" {
		d.all("spec.hostname", dnsLabel(s.Hostname))
		out.Hostname = s.Hostname
	}
	if s.Subdomain != "" {
		d.all("spec.subdomain", dnsLabel(s.Subdomain))
		out.Subdomain = s.Subdomain
	}
	d.hostAliases(s.HostAliases, out)
	d.dns(s, out)
	for i, r := range s.ImagePullSecrets {
		path := fmt.Sprintf("spec.imagePullSecrets[%d].name", i)
		if r.Name == "" {
			d.invalid(path, "must be given")
			continue
		}
		d.all(path, dnsSubdomain(r.Name))
		out.ImagePulls = append(out.ImagePulls, r.Name)
	}
	d.podSecurity(s, out)
	if s.Resources != nil {
		out.Resources = d.resources("spec.resources", s.Resources, true)
	}
	volumes := d.volumes(s.Volumes, out)
	d.containers(s, out, volumes)
	if out.OwnUsers {
		d.ownUsers(out)
	}
	return out
}

// ownUsers refuses what a pod with users of its own has no rights over.
func (d *decoder) ownUsers(out *pod.Spec) {
	if out.HostNetwork || out.HostPID || out.HostIPC {
		d.invalid("spec.hostUsers", "cannot be false together with hostNetwork, hostPID or hostIPC: the pod's users would have no rights there")
	}
	for _, c := range slices.Concat(out.Init, out.Containers) {
		if len(c.Devices) > 0 {
			d.invalid("spec.hostUsers", "cannot be false with volumeDevices, as container %s has: a device is the host's users'", c.Name)
		}
	}
}

func (d *decoder) hostAliases(aliases []corev1.HostAlias, out *pod.Spec) {
	for i, a := range aliases {
		path := fmt.Sprintf("spec.hostAliases[%d]", i)
		if a.IP == "" {
			d.invalid(path+".ip", "must be given")
			continue
		}
		alias := pod.Alias{IP: d.address(path+".ip", a.IP), Names: a.Hostnames}
		for j, h := range a.Hostnames {
			d.all(fmt.Sprintf("%s.hostnames[%d]", path, j), dnsSubdomain(h))
		}
		out.HostAlias = append(out.HostAlias, alias)
	}
}

// dns follows Kubernetes, except that there is no cluster: ClusterFirst, with or without
// host network, is the host's resolver.
func (d *decoder) dns(s *corev1.PodSpec, out *pod.Spec) {
	oneOf(d, "spec.dnsPolicy", s.DNSPolicy, corev1.DNSClusterFirst, corev1.DNSClusterFirstWithHostNet, corev1.DNSDefault, corev1.DNSNone)
	out.DNSPolicy = string(s.DNSPolicy)
	if s.DNSPolicy == "" || s.DNSPolicy == corev1.DNSClusterFirstWithHostNet {
		out.DNSPolicy = string(corev1.DNSClusterFirst)
	}
	c := s.DNSConfig
	if s.DNSPolicy == corev1.DNSNone && (c == nil || len(c.Nameservers) == 0) {
		d.invalid("spec.dnsConfig.nameservers", "must be given with dnsPolicy None")
	}
	if c == nil {
		return
	}
	const path = "spec.dnsConfig"
	if len(c.Nameservers) > 3 {
		d.invalid(path+".nameservers", "%d servers; the resolver takes at most 3", len(c.Nameservers))
	}
	for i, n := range c.Nameservers {
		out.DNS.Servers = append(out.DNS.Servers, d.address(fmt.Sprintf("%s.nameservers[%d]", path, i), n))
	}
	if len(c.Searches) > 32 {
		d.invalid(path+".searches", "%d domains; at most 32", len(c.Searches))
	}
	for i, n := range c.Searches {
		p := fmt.Sprintf("%s.searches[%d]", path, i)
		if n != "." {
			// Underscores are in use, and a final dot is allowed.
			d.all(p, dnsSubdomain(strings.ToLower(strings.ReplaceAll(strings.TrimSuffix(n, "."), "_", "-"))))
		}
		out.DNS.Searches = append(out.DNS.Searches, n)
	}
	for i, o := range c.Options {
		p := fmt.Sprintf("%s.options[%d]", path, i)
		opt := o.Name
		if o.Value != nil {
			opt += ":" + *o.Value
		}
		switch {
		case o.Name == "":
			d.invalid(p+".name", "must be given")
		case strings.ContainsAny(opt, " \t\n\r") || strings.Contains(o.Name, ":"):
			d.invalid(p, "%q is not one word", opt)
		}
		out.DNS.Options = append(out.DNS.Options, opt)
	}
}

// containers converts init containers and containers, and checks what holds between them.
func (d *decoder) containers(s *corev1.PodSpec, out *pod.Spec, volumes map[string]*pod.Volume) {
	if len(s.Containers) == 0 {
		d.invalid("spec.containers", "at least one container must be given")
	}
	names := map[string]string{}
	hostPorts := map[string]string{}
	add := func(list string, cs []corev1.Container, init bool) (all []pod.Container) {
		for i := range cs {
			path := fmt.Sprintf("spec.%s[%d]", list, i)
			c := &cs[i]
			if before, ok := names[c.Name]; ok && c.Name != "" {
				d.invalid(path+".name", "%q is the name of %s already", c.Name, before)
			}
			names[c.Name] = path
			pc := d.container(path, c, s, init, volumes)
			for j, p := range pc.Ports {
				if p.HostPort == 0 {
					continue
				}
				pp := fmt.Sprintf("%s.ports[%d].hostPort", path, j)
				for _, ip := range []netip.Addr{p.HostIP, {}} {
					if before, ok := hostPorts[hostPortKey(p, ip)]; ok {
						d.invalid(pp, "%s %d is taken by %s already", p.Protocol, p.HostPort, before)
						break
					}
				}
				hostPorts[hostPortKey(p, p.HostIP)] = path
			}
			all = append(all, pc)
		}
		return all
	}
	out.Init = add("initContainers", s.InitContainers, true)
	out.Containers = add("containers", s.Containers, false)

	// A reference of a volume to a container's resources.
	for i, v := range s.Volumes {
		check := func(path string, items []corev1.DownwardAPIVolumeFile) {
			for j, it := range items {
				if r := it.ResourceFieldRef; r != nil && r.ContainerName != "" && names[r.ContainerName] == "" {
					d.invalid(fmt.Sprintf("%s[%d].resourceFieldRef.containerName", path, j), "there is no container %q", r.ContainerName)
				}
			}
		}
		path := fmt.Sprintf("spec.volumes[%d]", i)
		if v.DownwardAPI != nil {
			check(path+".downwardAPI.items", v.DownwardAPI.Items)
		}
		if v.Projected != nil {
			for j, src := range v.Projected.Sources {
				if src.DownwardAPI != nil {
					check(fmt.Sprintf("%s.projected.sources[%d].downwardAPI.items", path, j), src.DownwardAPI.Items)
				}
			}
		}
	}
	for _, cs := range []struct {
		list string
		cs   []corev1.Container
	}{{"initContainers", s.InitContainers}, {"containers", s.Containers}} {
		for i, c := range cs.cs {
			for j, e := range c.Env {
				if e.ValueFrom == nil || e.ValueFrom.ResourceFieldRef == nil {
					continue
				}
				if n := e.ValueFrom.ResourceFieldRef.ContainerName; n != "" && names[n] == "" {
					d.invalid(fmt.Sprintf("spec.%s[%d].env[%d].valueFrom.resourceFieldRef.containerName", cs.list, i, j), "there is no container %q", n)
				}
			}
		}
	}
}

func hostPortKey(p pod.Port, ip netip.Addr) string {
	return fmt.Sprintf("%s %d %s", p.Protocol, p.HostPort, ip)
}
