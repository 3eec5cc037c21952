package manifest

import (
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// begin makes the decoder ready for the next object.
func (d *decoder) begin(doc document) *yaml.Node {
	d.at = map[string]position{"": doc.at}
	d.failed = map[string]bool{}
	d.prefix = doc.item
	return resolve(doc.node)
}

// kind checks what sort of object the document is.
func (d *decoder) kind(n *yaml.Node, doc document) (string, bool) {
	if n.Kind != yaml.MappingNode {
		d.bad(doc.at, doc.item, "an object must be a mapping with apiVersion, kind and metadata, and this is %s", describe(n))
		return "", false
	}
	at := doc.at
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == "kind" {
			at = place(n.Content[i])
		}
	}
	version, kind := scalarOf(n, "apiVersion"), scalarOf(n, "kind")
	if kind == "" && version == "" && doc.must != "" { // members of a typed list may leave them out
		version, kind = "v1", doc.must
	}
	switch {
	case kind == "" || version == "":
		d.bad(at, d.where(""), "apiVersion and kind must be given; supported: %s", supportedKinds)
	case doc.must != "" && kind != doc.must:
		d.bad(at, d.where("kind"), "a %sList holds no %s", doc.must, kind)
	case version != "v1" || kind != KindPod && kind != KindClaim && kind != KindConfigMap && kind != KindSecret:
		hint := ""
		if near := nearest(kind, []string{KindPod, KindClaim, KindConfigMap, KindSecret}); near != "" && (near != kind || version != "v1") {
			hint = "; did you mean v1 " + near + "?"
		}
		d.bad(at, d.where("kind"), "%s of %s is not supported; supported: %s%s", kind, version, supportedKinds, hint)
	default:
		return kind, true
	}
	return "", false
}

// object decodes one document; false if anything is wrong with it.
func (d *decoder) object(doc document, namespace string) (Object, bool) {
	n := d.begin(doc)
	kind, ok := d.kind(n, doc)
	if !ok {
		return Object{}, false
	}
	before := len(d.problems)
	o := Object{File: d.file, Line: doc.at.line}
	switch kind {
	case KindPod:
		var p corev1.Pod
		d.value(n, reflect.ValueOf(&p).Elem(), "", 0)
		o.Ref = d.meta(kind, &p.ObjectMeta, namespace)
		o.Pod = d.pod(&p)
	case KindClaim:
		var c corev1.PersistentVolumeClaim
		d.value(n, reflect.ValueOf(&c).Elem(), "", 0)
		o.Ref = d.meta(kind, &c.ObjectMeta, namespace)
		o.Claim = d.claim(&c)
	case KindConfigMap:
		var c corev1.ConfigMap
		d.value(n, reflect.ValueOf(&c).Elem(), "", 0)
		o.Ref = d.meta(kind, &c.ObjectMeta, namespace)
		o.Config = d.configMap(&c)
	case KindSecret:
		var s corev1.Secret
		d.value(n, reflect.ValueOf(&s).Elem(), "", 0)
		o.Ref = d.meta(kind, &s.ObjectMeta, namespace)
		o.Config = d.secret(&s)
	}
	return o, len(d.problems) == before
}

// partial is what Refs reads of an object.
type partial struct {
	metav1.TypeMeta
	metav1.ObjectMeta
}

// ref reads kind and metadata only.
func (d *decoder) ref(doc document, namespace string) (Object, bool) {
	n := d.begin(doc)
	kind, ok := d.kind(n, doc)
	if !ok {
		return Object{}, false
	}
	before := len(d.problems)
	var p partial
	for _, kv := range d.pairs(n, "", 0) {
		if kv[0].Value == "metadata" {
			d.at["metadata"] = place(kv[0])
			d.value(kv[1], reflect.ValueOf(&p.ObjectMeta).Elem(), "metadata", 1)
		}
	}
	o := Object{File: d.file, Line: doc.at.line, Ref: d.meta(kind, &p.ObjectMeta, namespace)}
	return o, len(d.problems) == before
}

// meta validates metadata and fills in the namespace.
func (d *decoder) meta(kind string, m *metav1.ObjectMeta, namespace string) Ref {
	if m.Name == "" {
		d.invalid("metadata.name", "must be given")
	} else {
		d.all("metadata.name", dnsSubdomain(m.Name))
	}
	if m.Namespace == "" {
		m.Namespace = namespace
	}
	d.all("metadata.namespace", dnsLabel(m.Namespace))
	for k, v := range m.Labels {
		p := "metadata.labels[" + k + "]"
		d.all(p, labelKey(k))
		d.all(p, labelValue(v))
	}
	total := 0
	for k, v := range m.Annotations {
		d.all("metadata.annotations["+k+"]", labelKey(strings.ToLower(k)))
		total += len(k) + len(v)
	}
	if total > 256<<10 {
		d.invalid("metadata.annotations", "all together are %d bytes; at most 256 KiB", total)
	}
	return Ref{kind, m.Namespace, m.Name}
}
