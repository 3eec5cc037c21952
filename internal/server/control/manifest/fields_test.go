package manifest

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
)

var roots = []reflect.Type{
	reflect.TypeFor[corev1.Pod](), reflect.TypeFor[corev1.PersistentVolumeClaim](), reflect.TypeFor[corev1.ConfigMap](), reflect.TypeFor[corev1.Secret](),
}

// walk calls fn for every field that decoding can come to.
func walk(fn func(f field)) {
	seen := map[reflect.Type]bool{}
	var visit func(t reflect.Type)
	visit = func(t reflect.Type) {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || seen[t] || reflect.PointerTo(t).Implements(jsonUnmarshaler) {
			return
		}
		seen[t] = true
		for _, f := range fieldsOf(t) {
			fn(f)
			if c := ruleOf(f).class; c == converted || c == checked {
				visit(f.typ)
			}
		}
	}
	for _, t := range roots {
		visit(t)
	}
}

// Every field that Kubernetes has is classified. Where this fails after k8s.io/api was
// updated, a field is new: convert it, or say in fields.go why not.
func TestEveryFieldIsClassified(t *testing.T) {
	used := map[string]bool{}
	n := 0
	whole := map[string][]string{}
	walk(func(f field) {
		n++
		key := f.owner + "." + f.name
		if _, ok := rules[key]; ok {
			used[key] = true
			return
		}
		if allConverted[f.owner] {
			whole[f.owner] = append(whole[f.owner], f.name)
			return
		}
		t.Errorf("%s is in no class", key)
	})
	for key := range rules {
		if !used[key] {
			t.Errorf("%s has a rule, and no such field is reached", key)
		}
	}
	if n < 200 {
		t.Errorf("only %d fields were seen", n)
	}
	// Types that are converted whole: their fields are pinned here.
	for owner, want := range pinned {
		got := whole[owner]
		slices.Sort(got)
		if g := strings.Join(slices.Compact(got), " "); g != want {
			t.Errorf("%s has the fields %q instead of %q", owner, g, want)
		}
	}
	for owner := range allConverted {
		if _, ok := pinned[owner]; !ok {
			t.Errorf("%s is not pinned: %q", owner, strings.Join(whole[owner], " "))
		}
	}
}

var pinned = map[string]string{
	"TypeMeta":                          "apiVersion kind",
	"LocalObjectReference":              "name",
	"EnvVar":                            "name value valueFrom",
	"ObjectFieldSelector":               "apiVersion fieldPath",
	"ResourceFieldSelector":             "containerName divisor resource",
	"ConfigMapKeySelector":              "key optional",
	"SecretKeySelector":                 "key optional",
	"EnvFromSource":                     "configMapRef prefix secretRef",
	"ConfigMapEnvSource":                "optional",
	"SecretEnvSource":                   "optional",
	"ContainerPort":                     "containerPort hostIP hostPort name protocol",
	"VolumeDevice":                      "devicePath name",
	"ExecAction":                        "command",
	"TCPSocketAction":                   "host port",
	"HTTPHeader":                        "name value",
	"SleepAction":                       "seconds",
	"Probe":                             "failureThreshold initialDelaySeconds periodSeconds successThreshold terminationGracePeriodSeconds timeoutSeconds",
	"ProbeHandler":                      "exec grpc httpGet tcpSocket",
	"LifecycleHandler":                  "exec httpGet sleep tcpSocket",
	"Lifecycle":                         "postStart preStop stopSignal",
	"Capabilities":                      "add drop",
	"SELinuxOptions":                    "level role type user",
	"SeccompProfile":                    "localhostProfile type",
	"AppArmorProfile":                   "localhostProfile type",
	"Sysctl":                            "name value",
	"HostAlias":                         "hostnames ip",
	"PodDNSConfig":                      "nameservers options searches",
	"PodDNSConfigOption":                "name value",
	"Volume":                            "name",
	"HostPathVolumeSource":              "path type",
	"ConfigMapProjection":               "items optional",
	"SecretProjection":                  "items optional",
	"DownwardAPIProjection":             "items",
	"PersistentVolumeClaimVolumeSource": "claimName readOnly",
	"ConfigMap":                         "binaryData data immutable metadata",
	"Secret":                            "data immutable metadata stringData type",
}

// Every field that is said to be converted makes a difference: full.yaml has all of
// them, and taking any one away changes what comes out, or is an error.
func TestConvertedFieldsCount(t *testing.T) {
	file := read(t, "testdata/full.yaml")
	want, err := Decode([]File{file}, "")
	if err != nil {
		t.Fatal(err)
	}
	same := map[string]bool{ // accepted only because they say what is so anyway
		"spec.os": true, "spec.os.name": true, "spec.hostUsers": true, "spec.setHostnameAsFQDN": true,
		"spec.containers[0].readinessProbe.httpGet.protocol": true, "spec.containers[0].livenessProbe.grpc.mode": true,
		"spec.containers[0].env[1].valueFrom.fieldRef.apiVersion": true,
		// Explicit defaults whose absence means the same.
		"spec.containers[0].ports[0].protocol": true,
		"spec.storageClassName":                true,
		// hostNetwork makes hostPort follow containerPort.
		"spec.containers[0].ports[0].hostPort": true,
	}
	covered := map[string]bool{}
	docs := nodes(t, file.Content)
	for i, doc := range docs {
		var paths [][]string
		collect(doc, nil, &paths)
		for _, p := range paths {
			cover(roots, doc, p, covered)
			name := pathName(p)
			if len(p) == 1 && (p[0] == "apiVersion" || p[0] == "kind") {
				continue
			}
			cut := nodes(t, file.Content)[i]
			remove(cut, p)
			raw, err := yaml.Marshal(cut)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Decode([]File{{"cut", raw}}, "")
			if err != nil {
				continue
			}
			a, b := want[i], got[0]
			a.File, a.Line, b.File, b.Line = "", 0, "", 0
			if reflect.DeepEqual(a, b) != same[name] {
				t.Errorf("%s: without it the result is the same: %v", name, !same[name])
			}
		}
	}
	walk(func(f field) {
		key := f.owner + "." + f.name
		if c := ruleOf(f).class; (c == converted || c == checked) && !covered[key] && !strings.Contains(ruleOf(f).why, "leave") {
			t.Errorf("%s is said to be converted, and full.yaml does not have it", key)
		}
	})
}

// Every field that is refused gives an error that names line and path.
func TestRefusedFields(t *testing.T) {
	for key, r := range rules {
		if r.class != refused {
			continue
		}
		if !strings.Contains(r.why, "not supported") && !strings.Contains(r.why, "leave") && len(r.why) < 20 {
			t.Errorf("%s: %q says too little", key, r.why)
		}
	}
	for _, tt := range []struct{ spec, path string }{
		{"resourceClaims: [{name: a}]", "spec.resourceClaims"},
		{"volumes: [{name: a, csi: {driver: x}}]", "spec.volumes[0].csi"},
		{"volumes: [{name: a, nfs: {server: x, path: /}}]", "spec.volumes[0].nfs"},
		{"readinessGates: [{conditionType: x}]", "spec.readinessGates"},
		{"ephemeralContainers: [{name: x}]", "spec.ephemeralContainers"},
		{"os: {name: windows}", "spec.os.name"},
		{"schedulingGates: [{name: x}]", "spec.schedulingGates"},
	} {
		text := "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers: [{name: a, image: a}]\n  " + tt.spec + "\n"
		_, err := Decode([]File{{"f", []byte(text)}}, "")
		if err == nil || !strings.HasPrefix(err.Error(), "f:6: "+tt.path+": ") || strings.Count(err.Error(), "\n") > 0 {
			t.Errorf("%s: %v", tt.spec, err)
		}
	}
}

func nodes(t *testing.T, text []byte) (docs []*yaml.Node) {
	t.Helper()
	dec := yaml.NewDecoder(strings.NewReader(string(text)))
	for {
		var n yaml.Node
		if dec.Decode(&n) != nil {
			return docs
		}
		docs = append(docs, n.Content[0])
	}
}

func collect(n *yaml.Node, at []string, paths *[][]string) {
	if len(at) > 0 {
		*paths = append(*paths, slices.Clone(at))
	}
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			collect(n.Content[i+1], append(at, n.Content[i].Value), paths)
		}
	case yaml.SequenceNode:
		for i, c := range n.Content {
			collect(c, append(at, "["+strconv.Itoa(i)+"]"), paths)
		}
	}
}

func remove(n *yaml.Node, path []string) {
	for i, p := range path {
		last := i == len(path)-1
		if n.Kind == yaml.SequenceNode {
			j, _ := strconv.Atoi(strings.Trim(p, "[]"))
			if last {
				n.Content = slices.Delete(n.Content, j, j+1)
				return
			}
			n = n.Content[j]
			continue
		}
		for j := 0; j+1 < len(n.Content); j += 2 {
			if n.Content[j].Value == p {
				if last {
					n.Content = slices.Delete(n.Content, j, j+2)
					return
				}
				n = n.Content[j+1]
				break
			}
		}
	}
}

func pathName(path []string) string {
	return strings.ReplaceAll(strings.Join(path, "."), ".[", "[")
}

// cover notes which field of which type the path ends at.
func cover(roots []reflect.Type, doc *yaml.Node, path []string, covered map[string]bool) {
	kind := scalarOf(doc, "kind")
	i := slices.IndexFunc(roots, func(t reflect.Type) bool { return t.Name() == kind })
	t := roots[i]
	for _, p := range path {
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		switch t.Kind() {
		case reflect.Slice, reflect.Map:
			t = t.Elem()
		case reflect.Struct:
			f, ok := fieldsOf(t)[p]
			if !ok {
				panic(fmt.Sprintf("%v has no %s", t, p))
			}
			covered[f.owner+"."+f.name] = true
			t = f.typ
		}
	}
}
