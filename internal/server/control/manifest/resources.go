package manifest

import (
	"fmt"
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/orlop-io/orlop/internal/pod"
)

// bytes returns a quantity of bytes, rounded up.
func (d *decoder) bytes(path string, q resource.Quantity) int64 {
	if q.Sign() < 0 {
		d.invalid(path, "%s must not be negative", q.String())
		return 0
	}
	if q.CmpInt64(math.MaxInt64/2) > 0 {
		d.invalid(path, "%s is more than any machine has", q.String())
		return 0
	}
	return q.Value()
}

// milli returns thousandths, rounded up.
func (d *decoder) milli(path string, q resource.Quantity) int64 {
	if q.Sign() < 0 {
		d.invalid(path, "%s must not be negative", q.String())
		return 0
	}
	if q.CmpInt64(1<<20) > 0 {
		d.invalid(path, "%s is more than any machine has", q.String())
		return 0
	}
	return q.MilliValue()
}

// resources converts requests and limits. A request that is left out is its limit,
// as in Kubernetes. Requests of ephemeral storage are for a scheduler: they are
// checked, and say nothing here.
func (d *decoder) resources(path string, r *corev1.ResourceRequirements, ofPod bool) (out pod.Resources) {
	supported := "cpu, memory, ephemeral-storage, hugepages-SIZE"
	if ofPod {
		supported = "cpu, memory, hugepages-SIZE"
	}
	for _, list := range []struct {
		name   string
		values corev1.ResourceList
	}{{"limits", r.Limits}, {"requests", r.Requests}} {
		limit := list.name == "limits"
		names := make([]string, 0, len(list.values))
		for n := range list.values {
			names = append(names, string(n))
		}
		slices.Sort(names)
		for _, name := range names {
			q := list.values[corev1.ResourceName(name)]
			p := fmt.Sprintf("%s.%s[%s]", path, list.name, name)
			switch size, huge := strings.CutPrefix(name, corev1.ResourceHugePagesPrefix); {
			case name == "cpu":
				v := d.milli(p, q)
				if limit {
					out.CPULimitMilli = v
				} else {
					out.CPURequestMilli = v
				}
			case name == "memory":
				v := d.bytes(p, q)
				if limit {
					out.MemoryLimitBytes = v
				} else {
					out.MemoryRequestBytes = v
				}
			case name == "ephemeral-storage" && !ofPod:
				v := d.bytes(p, q)
				if limit {
					out.EphemeralBytes = v
				}
			case huge:
				page, err := resource.ParseQuantity(size)
				if v := page.Value(); err != nil || v <= 0 || v&(v-1) != 0 {
					d.invalid(p, "%q is not a page size; examples: hugepages-2Mi, hugepages-1Gi", size)
					continue
				}
				v := d.bytes(p, q)
				if limit {
					if out.HugepageBytes == nil {
						out.HugepageBytes = map[string]int64{}
					}
					out.HugepageBytes[size] = v
				} else if l, ok := r.Limits[corev1.ResourceName(name)]; !ok || l.Cmp(q) != 0 {
					d.invalid(p, "the request of huge pages must be their limit")
				}
			default:
				hint := ""
				if near := nearest(name, []string{"cpu", "memory", "ephemeral-storage"}); near != "" {
					hint = "; did you mean " + near + "?"
				}
				d.invalid(p, "resource %q is not supported yet; supported: %s%s", name, supported, hint)
				continue
			}
			if l, ok := r.Limits[corev1.ResourceName(name)]; ok && !limit && q.Cmp(l) > 0 {
				d.invalid(p, "the request %s is above the limit %s", q.String(), l.String())
			}
		}
	}
	if _, ok := r.Requests["cpu"]; !ok {
		out.CPURequestMilli = out.CPULimitMilli
	}
	if _, ok := r.Requests["memory"]; !ok {
		out.MemoryRequestBytes = out.MemoryLimitBytes
	}
	return out
}

// divisors that Kubernetes allows.
var (
	cpuDivisors  = []string{"1m", "1"}
	byteDivisors = []string{"1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"}
)

func (d *decoder) resourceRef(path string, r *corev1.ResourceFieldSelector, file bool) *pod.ResourceRef {
	out := &pod.ResourceRef{Container: r.ContainerName, Resource: r.Resource}
	if file && r.ContainerName == "" {
		d.invalid(path+".containerName", "must be given: a volume belongs to no container")
	}
	kind, name, _ := strings.Cut(r.Resource, ".")
	divisors := byteDivisors
	switch {
	case r.Resource == "":
		d.invalid(path+".resource", "must be given")
	case kind != "limits" && kind != "requests",
		name != "cpu" && name != "memory" && name != "ephemeral-storage" && !strings.HasPrefix(name, corev1.ResourceHugePagesPrefix):
		d.invalid(path+".resource", "%q cannot be shown; supported: limits or requests of cpu, memory, ephemeral-storage, hugepages-SIZE, as in limits.memory", r.Resource)
	case name == "cpu":
		divisors = cpuDivisors
	}
	if !r.Divisor.IsZero() {
		if !slices.Contains(divisors, r.Divisor.String()) {
			d.invalid(path+".divisor", "%s cannot divide %s; one of %s", r.Divisor.String(), r.Resource, strings.Join(divisors, ", "))
		} else if v := r.Divisor.MilliValue(); v > 0 && r.Divisor.CmpInt64(math.MaxInt64/1000) <= 0 {
			out.DivisorMilli = v
		} else {
			d.invalid(path+".divisor", "%s is too large", r.Divisor.String())
		}
	}
	return out
}
