package main

import (
	"net/http/httptest"
	"path/filepath"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/orlop-io/orlop/internal/image/imagetest"
)

const bigLayers = 8

// registry is a plain-HTTP registry on a loopback port with the run's images.
type registry struct{ host string }

func (r registry) idle() string  { return r.host + "/bench/idle:1" }
func (r registry) pause() string { return r.host + "/bench/pause:1" }
func (r registry) big() string   { return r.host + "/bench/big:1" }

// serveImages makes the images and serves them until stop is called.
func serveImages(dir string, o options) (r registry, stop func(), err error) {
	var reg imagetest.Registry
	entries, err := rootEntries()
	if err != nil {
		return r, nil, err
	}
	for name, mark := range map[string]string{"pause": pauseMark, "idle": workloadMark} {
		l, err := imagetest.Build(filepath.Join(dir, name), []imagetest.Layer{{Entries: entries}}, func(i *ocispec.Image, _ *ocispec.Manifest) {
			i.Config.Entrypoint, i.Config.Cmd = []string{"/bin/sleep", mark}, nil
		})
		if err != nil {
			return r, nil, err
		}
		reg.Add("bench/"+name, l)
	}
	if o.pulls {
		l, err := imagetest.Generate(filepath.Join(dir, "big"), o.files, int64(o.mib)<<20, bigLayers)
		if err != nil {
			return r, nil, err
		}
		reg.Add("bench/big", l)
	}
	srv := httptest.NewServer(&reg)
	return registry{strings.TrimPrefix(srv.URL, "http://")}, srv.Close, nil
}
