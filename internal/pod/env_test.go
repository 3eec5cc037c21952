package pod

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/orlop-io/orlop/internal/base/errs"
)

func TestExpand(t *testing.T) {
	vars := map[string]string{"A": "a", "B": "$(A)", "E": ""}
	for in, want := range map[string]string{
		"":              "",
		"plain":         "plain",
		"$(A)":          "a",
		"x$(A)y$(A)":    "xaya",
		"$(B)":          "$(A)", // once
		"[$(E)]":        "[]",
		"$(NO)":         "$(NO)",
		"$$(A)":         "$(A)",
		"$$$(A)":        "$a",
		"$$$$(A)":       "$$(A)",
		"$":             "$",
		"a$":            "a$",
		"$A ${A}":       "$A ${A}",
		"$(":            "$(",
		"$(A":           "$(A",
		"$(A $$x":       "$(A $x",
		"$()":           "$()",
		"$(A)$(":        "a$(",
		"$(NO $(A))":    "$(NO $(A))",
		"$é":            "$é",
		"$(date +%s) é": "$(date +%s) é",
	} {
		if got := expand(in, vars); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestResolveEnv(t *testing.T) {
	stores := map[string]map[string][]byte{
		"config cm":  {"B": []byte("cm-b"), "A": []byte("cm-a"), "1.x-y": []byte("odd")},
		"secret s":   {"A": []byte("s-a"), "nul": []byte("a\x00b")},
		"config one": {"A": []byte("one-a")},
	}
	lookup := func(kind string) func(string) (map[string][]byte, error) {
		return func(name string) (map[string][]byte, error) {
			if name == "locked" {
				return nil, errs.New(errs.Unavailable, "try again")
			}
			if m, ok := stores[kind+" "+name]; ok {
				return m, nil
			}
			return nil, errs.New(errs.NotFound, "%s %s does not exist", kind, name)
		}
	}
	src := envSource{
		ConfigMap: lookup("config"), Secret: lookup("secret"),
		Field: func(p string) (string, error) {
			if p == "bad" {
				return "", errs.New(errs.Invalid, "no field %s", p)
			}
			return "field " + p, nil
		},
		Resource: func(r ResourceRef) (string, error) { return "resource " + r.Resource, nil },
	}
	cm := func(name, key string, optional bool) *KeyRef { return &KeyRef{name, key, optional} }
	for name, tt := range map[string]struct {
		image []string
		from  []EnvSource
		env   []EnvVar
		want  []string
		err   string
		kind  *errs.Kind
	}{
		"image":     {image: []string{"PATH=/bin", "EMPTY=", "EQ=a=b"}, want: []string{"PATH=/bin", "EMPTY=", "EQ=a=b"}},
		"zero byte": {from: []EnvSource{{Secret: "s"}}, err: "variable nul of container main has a zero byte", kind: errs.Invalid},
		"from": {
			image: []string{"A=image", "Z=image"}, from: []EnvSource{{ConfigMap: "cm", Prefix: "P_"}, {ConfigMap: "one"}},
			env:  []EnvVar{{Name: "P_B", Value: "env"}},
			want: []string{"A=one-a", "Z=image", "P_1.x-y=odd", "P_A=cm-a", "P_B=env"},
		},
		"expansion": {
			image: []string{"PATH=/bin"}, from: []EnvSource{{ConfigMap: "one"}},
			env: []EnvVar{
				{Name: "X", Value: "$(A)"}, {Name: "Y", Value: "$(X)-$(LATER)"}, {Name: "LATER", Value: "l"},
				{Name: "P", Value: "/opt:$(PATH)"}, {Name: "E", Value: "$$(A)"}, {Name: "X", Value: "$(X)$(X)"},
			},
			want: []string{"PATH=/bin", "A=one-a", "X=one-aone-a", "Y=one-a-$(LATER)", "LATER=l", "P=/opt:$(PATH)", "E=$(A)"},
		},
		"sources": {
			env: []EnvVar{
				{Name: "C", ConfigMap: cm("cm", "A", false)}, {Name: "S", Secret: cm("s", "A", false)},
				{Name: "F", Field: "metadata.name"}, {Name: "R", Resource: &ResourceRef{Resource: "limits.cpu"}}, {Name: "N"},
			},
			want: []string{"C=cm-a", "S=s-a", "F=field metadata.name", "R=resource limits.cpu", "N="},
		},
		"optional": {
			from: []EnvSource{{ConfigMap: "gone", Optional: true}, {Secret: "gone", Optional: true}},
			env:  []EnvVar{{Name: "A", ConfigMap: cm("gone", "x", true)}, {Name: "B", Secret: cm("s", "x", true)}, {Name: "C", Value: "$(A)"}},
			want: []string{"C=$(A)"},
		},
		"optional does not hide the rest": {from: []EnvSource{{ConfigMap: "locked", Optional: true}}, err: "config map locked", kind: errs.Unavailable},
		"map gone":                        {from: []EnvSource{{ConfigMap: "gone"}}, err: "config map gone", kind: errs.NotFound},
		"secret gone":                     {from: []EnvSource{{Secret: "gone"}}, err: "secret gone", kind: errs.NotFound},
		"ref gone":                        {env: []EnvVar{{Name: "A", Secret: cm("gone", "k", false)}}, err: `key "k" of secret gone`, kind: errs.NotFound},
		"key gone":                        {env: []EnvVar{{Name: "A", ConfigMap: cm("cm", "k", false)}}, err: `config map cm has no key "k"`, kind: errs.NotFound},
		"field":                           {env: []EnvVar{{Name: "A", Field: "bad"}}, err: "variable A of container main", kind: errs.Invalid},
	} {
		got, declared, err := resolveEnv(&Container{Name: "main", EnvFrom: tt.from, Env: tt.env}, tt.image, src)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) || !errors.Is(err, tt.kind) {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		} else if err != nil || !reflect.DeepEqual(got, append([]string{}, tt.want...)) {
			t.Errorf("%s: %q, %v; want %q", name, got, err, tt.want)
		} else {
			// What $(NAME) stands for in commands: all but what the image alone says.
			for _, kv := range got {
				k, v, _ := strings.Cut(kv, "=")
				if known, ok := declared[k]; ok == slices.Contains(tt.image, kv) || ok && known != v {
					t.Errorf("%s: declared are %q", name, declared)
				}
			}
		}
	}
	if m := envMap([]string{"A=1", "B=x=y", "A=2", "C"}); !reflect.DeepEqual(m, map[string]string{"A": "2", "B": "x=y", "C": ""}) {
		t.Errorf("%v", m)
	}
}

func TestFieldValue(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	p := &Pod{ID: "u-1", IPs: []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}, Spec: Spec{
		Key: Key{Namespace: "ns", Name: "web"}, Labels: map[string]string{"b": "2", "a": "say \"1\"\n"}, Annotations: map[string]string{"x.io/y": "z"},
	}}
	for path, want := range map[string]string{
		"metadata.name": "web", "metadata.namespace": "ns", "metadata.uid": "u-1", "spec.nodeName": host, "spec.serviceAccountName": "default",
		"metadata.labels['b']": "2", "metadata.labels['none']": "", "metadata.annotations['x.io/y']": "z",
		"metadata.labels": "a=\"say \\\"1\\\"\\n\"\nb=\"2\"", "metadata.annotations": `x.io/y="z"`,
		"status.podIP": "10.0.0.2", "status.podIPs": "10.0.0.2,fd00::2", "status.hostIP": hostIP(), "status.hostIPs": hostIP(),
	} {
		if got, err := fieldValue(p, path); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", path, got, err, want)
		}
	}
	for _, path := range []string{"", "metadata", "metadata.labels['b'", "spec.containers", "status.phase"} {
		if got, err := fieldValue(p, path); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	if got, err := fieldValue(&Pod{}, "status.podIP"); got != "" || err != nil {
		t.Errorf("without addresses: %q, %v", got, err)
	}
}

func TestResourceValue(t *testing.T) {
	pod := &Spec{
		Init: []Container{{Name: "init", Resources: Resources{CPULimitMilli: 1500}}},
		Containers: []Container{{Name: "main", Resources: Resources{
			CPURequestMilli: 250, CPULimitMilli: 1001, MemoryRequestBytes: 1<<20 + 1, MemoryLimitBytes: 64 << 20, EphemeralBytes: 5,
			HugepageBytes: map[string]int64{"2Mi": 4 << 20},
		}}, {Name: "bare"}},
	}
	main, bare := &pod.Containers[0], &pod.Containers[1]
	const mi = 1000 << 20
	for _, tt := range []struct {
		self *Container
		ref  ResourceRef
		want string
	}{
		{main, ResourceRef{Resource: "limits.cpu"}, "2"},
		{main, ResourceRef{Resource: "limits.cpu", DivisorMilli: 1}, "1001"},
		{main, ResourceRef{Resource: "requests.cpu"}, "1"},
		{main, ResourceRef{Resource: "requests.cpu", DivisorMilli: 1}, "250"},
		{main, ResourceRef{Resource: "limits.memory"}, "67108864"},
		{main, ResourceRef{Resource: "limits.memory", DivisorMilli: mi}, "64"},
		{main, ResourceRef{Resource: "requests.memory", DivisorMilli: mi}, "2"},
		{main, ResourceRef{Resource: "limits.ephemeral-storage"}, "5"},
		{main, ResourceRef{Resource: "limits.hugepages-2Mi", DivisorMilli: mi}, "4"},
		{main, ResourceRef{Resource: "requests.hugepages-2Mi"}, "4194304"},
		{bare, ResourceRef{Resource: "limits.hugepages-2Mi"}, "0"},
		{bare, ResourceRef{Resource: "limits.cpu"}, fmt.Sprint(runtime.NumCPU())},
		{bare, ResourceRef{Resource: "requests.cpu"}, "0"},
		{bare, ResourceRef{Resource: "limits.cpu", Container: "init", DivisorMilli: 1}, "1500"},
		{nil, ResourceRef{Resource: "limits.memory", Container: "main"}, "67108864"},
	} {
		if got, err := resourceValue(pod, tt.self, tt.ref); err != nil || got != tt.want {
			t.Errorf("%+v: %q, %v; want %q", tt.ref, got, err, tt.want)
		}
	}
	if got, err := resourceValue(pod, bare, ResourceRef{Resource: "limits.memory"}); err != nil || len(got) < 8 {
		t.Errorf("the machine's memory: %q, %v", got, err)
	}
	for _, tt := range []struct {
		self *Container
		ref  ResourceRef
	}{
		{main, ResourceRef{Resource: "limits.gpu"}}, {main, ResourceRef{Resource: "other.hugepages-2Mi"}},
		{main, ResourceRef{Resource: "limits.cpu", Container: "none"}}, {nil, ResourceRef{Resource: "limits.cpu"}},
	} {
		if got, err := resourceValue(pod, tt.self, tt.ref); !errors.Is(err, errs.Invalid) {
			t.Errorf("%+v: %q, %v", tt.ref, got, err)
		}
	}
}
