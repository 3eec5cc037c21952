// Package manifest turns Kubernetes manifests into what the domains take.
//
// The rule of the package is that nothing is dropped in silence. Every field of
// the Kubernetes types is in one of four classes (fields.go): converted, ignored
// by design because it means nothing on one host, refused as not supported, or
// unknown to Kubernetes itself. The last two are errors with file, line and field
// path. A test walks the types by reflection, so that a field which a newer k8s.io/api
// brings cannot pass unclassified; at run time such a field is refused.
//
// Decoding goes in three steps, and each collects everything that is wrong instead
// of stopping at the first:
//
//	text → YAML nodes       documents.go: documents, JSON, lists
//	nodes → k8s.io/api      decode.go:    strict, with the line of every field
//	k8s.io/api → domains    pod.go …:     Kubernetes' defaults and validation
//
// Encode goes the other way, for `orlop inspect`, and proves in tests that the
// conversion keeps everything: decoding what it writes gives the same again.
package manifest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/pod"
	"github.com/orlop-io/orlop/internal/volume"
)

// The kinds of objects that are supported, all of apiVersion v1.
const (
	KindPod       = "Pod"
	KindClaim     = "PersistentVolumeClaim"
	KindConfigMap = "ConfigMap"
	KindSecret    = "Secret"
)

const supportedKinds = "Pod, PersistentVolumeClaim, ConfigMap, Secret and List, all of apiVersion v1"

// File is one file of manifests. Its name is for messages only.
type File struct {
	Name    string
	Content []byte
}

// Ref names an object.
type Ref struct {
	Kind      string
	Namespace string
	Name      string
}

func (r Ref) String() string { return r.Kind + " " + r.Namespace + "/" + r.Name }

// Object is one object of a manifest, ready for its domain. Exactly one of the last fields is
// set; Config is set for both config maps and secrets.
type Object struct {
	Ref
	File string
	Line int // of the document

	Pod    *pod.Spec
	Claim  *volume.Claim
	Config *pod.Config
}

// Problem is one thing that is wrong, with its place.
type Problem struct {
	File         string
	Line, Column int    // from 1; 0: unknown
	Path         string // spec.containers[0].image; "": the document itself
	Message      string
}

func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	b.WriteString(": ")
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// Problems is the error of Decode: everything that is wrong, in the order of the
// files. It is of the kind errs.Invalid.
type Problems []Problem

// Error returns one line for each problem.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Summary says in one line that there are problems.
func (ps Problems) Summary() string {
	if len(ps) == 1 {
		return "the manifest has a problem; nothing was done"
	}
	return fmt.Sprintf("the manifests have %d problems; nothing was done", len(ps))
}

// Is makes the error one of the kind errs.Invalid.
func (ps Problems) Is(target error) bool { return target == error(errs.Invalid) }

// Decode returns the objects of the files, in their order. Objects that name no
// namespace are put into the given one ("" is default). The error is of type
// Problems; no object is returned with it.
func Decode(files []File, namespace string) ([]Object, error) {
	var objects []Object
	var problems Problems
	seen := map[Ref]Object{}
	for _, f := range files {
		d := &decoder{file: f.Name}
		docs := d.documents(f.Content)
		for _, doc := range docs {
			o, ok := d.object(doc, cmp.Or(namespace, "default"))
			if !ok {
				continue
			}
			if before, twice := seen[o.Ref]; twice {
				d.bad(doc.at, "metadata.name", "%s is already described at %s:%d; one apply takes each object once", o.Ref, before.File, before.Line)
				continue
			}
			seen[o.Ref] = o
			objects = append(objects, o)
		}
		if len(docs) == 0 && len(d.problems) == 0 {
			d.bad(position{}, "", "it holds no object; it must describe at least one: %s", supportedKinds)
		}
		problems = append(problems, d.sorted()...)
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return objects, nil
}

// Refs returns which objects the files name, without looking at more than kind and
// metadata: what was applied by another version can still be deleted.
func Refs(files []File, namespace string) ([]Object, error) {
	var objects []Object
	var problems Problems
	seen := map[Ref]bool{}
	for _, f := range files {
		d := &decoder{file: f.Name}
		for _, doc := range d.documents(f.Content) {
			o, ok := d.ref(doc, cmp.Or(namespace, "default"))
			if ok && !seen[o.Ref] {
				seen[o.Ref] = true
				objects = append(objects, o)
			}
		}
		problems = append(problems, d.sorted()...)
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return objects, nil
}

// sorted returns the problems by line.
func (d *decoder) sorted() Problems {
	slices.SortStableFunc(d.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Message, b.Message))
	})
	if d.truncated {
		d.problems = append(d.problems, Problem{File: d.file, Message: "there are more problems, which are not shown"})
	}
	return d.problems
}
