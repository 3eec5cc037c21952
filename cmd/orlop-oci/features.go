package main

import (
	"encoding/json"
	"os"

	"github.com/orlop-io/orlop/internal/platform/container"
)

func featuresCommand(f *flags) func(*app, []string) error {
	return func(a *app, _ []string) error {
		all, err := container.Features()
		if err != nil {
			return err
		}
		if all.Annotations == nil {
			all.Annotations = map[string]string{}
		}
		all.Annotations["io.github.orlop.version"] = version
		data, err := json.MarshalIndent(all, "", "    ")
		if err != nil {
			return err
		}
		_, err = os.Stdout.Write(append(data, '\n'))
		return err
	}
}
