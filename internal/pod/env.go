package pod

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// envSource is where variables come from.
type envSource struct {
	ConfigMap, Secret func(name string) (map[string][]byte, error)
	Field             func(path string) (string, error)
	Resource          func(ResourceRef) (string, error)
}

// resolveEnv returns the environment as Kubernetes composes it: the image's, then
// envFrom in order, then env in order, later ones winning. $(NAME) in a value stands
// for a variable before it; the image's are not known to Kubernetes, so that $(PATH)
// stays as it is unless the manifest sets PATH. Those that are known to it are returned
// too: they are what $(NAME) stands for in command, args and subPathExpr.
func resolveEnv(c *Container, image []string, src envSource) (env []string, declared map[string]string, err error) {
	vars := make(map[string]string)
	declared = make(map[string]string)
	var order []string
	var bad error
	set := func(k, v string) {
		if _, ok := vars[k]; !ok {
			order = append(order, k)
		}
		vars[k] = v
	}
	for _, kv := range image {
		k, v, _ := strings.Cut(kv, "=")
		set(k, v)
	}
	declare := func(k, v string) {
		if bad == nil && strings.ContainsRune(k+v, 0) { // the kernel would cut it there
			bad = errs.New(errs.Invalid, "variable %s of container %s has a zero byte, which no variable can hold; mount the value as a file", k, c.Name)
		}
		declared[k] = v
		set(k, v)
	}
	for _, from := range c.EnvFrom {
		lookup, kind, name := src.ConfigMap, "config map", from.ConfigMap
		if from.Secret != "" {
			lookup, kind, name = src.Secret, "secret", from.Secret
		}
		data, err := lookup(name)
		if isGone(err) && from.Optional {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("environment of container %s from %s %s: %w", c.Name, kind, name, err)
		}
		for _, k := range slices.Sorted(maps.Keys(data)) {
			declare(from.Prefix+k, string(data[k]))
		}
	}
	for _, e := range c.Env {
		value, ok, err := envValue(e, declared, src)
		if err != nil {
			return nil, nil, fmt.Errorf("variable %s of container %s: %w", e.Name, c.Name, err)
		}
		if ok {
			declare(e.Name, value)
		}
	}
	if bad != nil {
		return nil, nil, bad
	}
	env = make([]string, 0, len(order))
	for _, k := range order {
		env = append(env, k+"="+vars[k])
	}
	return env, declared, nil
}

func envValue(e EnvVar, vars map[string]string, src envSource) (value string, ok bool, err error) {
	ref, lookup, kind := e.ConfigMap, src.ConfigMap, "config map"
	if e.Secret != nil {
		ref, lookup, kind = e.Secret, src.Secret, "secret"
	}
	switch {
	case ref != nil:
		data, err := lookup(ref.Name)
		if err != nil && !(isGone(err) && ref.Optional) {
			return "", false, fmt.Errorf("key %q of %s %s: %w", ref.Key, kind, ref.Name, err)
		}
		b, ok := data[ref.Key]
		if !ok && !ref.Optional {
			return "", false, errs.New(errs.NotFound, "%s %s has no key %q", kind, ref.Name, ref.Key)
		}
		return string(b), ok, nil
	case e.Field != "":
		value, err = src.Field(e.Field)
	case e.Resource != nil:
		value, err = src.Resource(*e.Resource)
	default:
		value = expand(e.Value, vars)
	}
	return value, err == nil, err
}

// envMap turns NAME=value lines into a map.
func envMap(env []string) map[string]string {
	m := make(map[string]string, len(env))
	for _, kv := range env {
		k, v, _ := strings.Cut(kv, "=")
		m[k] = v
	}
	return m
}

// expand replaces $(NAME) by the variable's value and $$ by $. What is not known,
// or is no reference, stays as it is.
func expand(s string, vars map[string]string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i:], ')')
			if end < 0 { // what follows may still hold an escape
				b.WriteString("$(")
				i++
				continue
			}
			name := s[i+2 : i+end]
			if v, ok := vars[name]; ok {
				b.WriteString(v)
			} else {
				b.WriteString(s[i : i+end+1])
			}
			i += end
		default:
			b.WriteByte('$')
		}
	}
	return b.String()
}

// fieldValue returns a field of the downward API.
func fieldValue(p *Pod, path string) (string, error) {
	ips := make([]string, len(p.IPs))
	for i, ip := range p.IPs {
		ips[i] = ip.String()
	}
	first := ""
	if len(ips) > 0 {
		first = ips[0]
	}
	switch path {
	case "metadata.name":
		return p.Spec.Name, nil
	case "metadata.namespace":
		return p.Spec.Namespace, nil
	case "metadata.uid":
		return string(p.ID), nil
	case "metadata.labels":
		return pairs(p.Spec.Labels), nil
	case "metadata.annotations":
		return pairs(p.Spec.Annotations), nil
	case "spec.nodeName":
		return os.Hostname()
	case "spec.serviceAccountName":
		return "default", nil
	case "status.podIP":
		return first, nil
	case "status.podIPs":
		return strings.Join(ips, ","), nil
	case "status.hostIP", "status.hostIPs":
		return hostIP(), nil
	}
	for prefix, m := range map[string]map[string]string{"metadata.labels['": p.Spec.Labels, "metadata.annotations['": p.Spec.Annotations} {
		if key, ok := strings.CutPrefix(path, prefix); ok && strings.HasSuffix(key, "']") {
			return m[strings.TrimSuffix(key, "']")], nil
		}
	}
	return "", errs.New(errs.Invalid, "the downward API has no field %q", path)
}

func pairs(m map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&b, "%s=%q\n", k, m[k])
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// hostIP is the address by which this host reaches the world: the kernel's choice of
// a source, asked without sending anything.
func hostIP() string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	// 192.0.2.1 is TEST-NET-1 (RFC 5737): any address that only the default route reaches.
	if unix.Connect(fd, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{192, 0, 2, 1}}) != nil {
		return ""
	}
	sa, err := unix.Getsockname(fd)
	if in, ok := sa.(*unix.SockaddrInet4); err == nil && ok {
		return fmt.Sprintf("%d.%d.%d.%d", in.Addr[0], in.Addr[1], in.Addr[2], in.Addr[3])
	}
	return ""
}

// resourceValue returns a request or limit of a container in units of the divisor,
// rounded up. A limit that is not set is what the machine has.
func resourceValue(p *Spec, self *Container, r ResourceRef) (string, error) {
	c := self
	if r.Container != "" {
		c = nil
		for _, l := range [][]Container{p.Init, p.Containers} {
			for i := range l {
				if l[i].Name == r.Container {
					c = &l[i]
				}
			}
		}
	}
	if c == nil {
		return "", errs.New(errs.Invalid, "resource %s: the pod has no container %q", r.Resource, r.Container)
	}
	var si unix.Sysinfo_t
	unix.Sysinfo(&si)
	memory := int64(si.Totalram) * int64(si.Unit)
	pick := func(v, otherwise int64) int64 {
		if v != 0 {
			return v
		}
		return otherwise
	}
	var milli int64
	_, resource, _ := strings.Cut(r.Resource, ".")
	if size, ok := strings.CutPrefix(resource, "hugepages-"); ok && (r.Resource == "limits."+resource || r.Resource == "requests."+resource) {
		// A request of huge pages is always the limit.
		return ceilDiv(c.Resources.HugepageBytes[size]*1000, pick(r.DivisorMilli, 1000)), nil
	}
	switch r.Resource {
	case "limits.cpu":
		milli = pick(c.Resources.CPULimitMilli, int64(runtime.NumCPU())*1000)
	case "requests.cpu":
		milli = c.Resources.CPURequestMilli
	case "limits.memory":
		milli = pick(c.Resources.MemoryLimitBytes, memory) * 1000
	case "requests.memory":
		milli = c.Resources.MemoryRequestBytes * 1000
	case "limits.ephemeral-storage":
		milli = c.Resources.EphemeralBytes * 1000
	case "requests.ephemeral-storage":
		milli = 0
	default:
		return "", errs.New(errs.Invalid, "the downward API has no resource %q", r.Resource)
	}
	return ceilDiv(milli, pick(r.DivisorMilli, 1000)), nil
}

func ceilDiv(n, by int64) string {
	q := n / by
	if n%by > 0 {
		q++
	}
	return strconv.FormatInt(q, 10)
}
