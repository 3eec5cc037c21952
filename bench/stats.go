package main

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// sample is a set of measurements of one thing, in milliseconds.
type sample []float64

func (s *sample) add(d time.Duration) { *s = append(*s, float64(d)/float64(time.Millisecond)) }

// at returns the value below which the share p of the sample lies; NaN of none.
func (s sample) at(p float64) float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	o := slices.Sorted(slices.Values(s))
	return o[min(len(o)-1, int(p*float64(len(o))))]
}

// spent is CPU time over a number of operations.
type spent struct {
	Ms float64
	N  int
}

func (s *spent) add(d time.Duration, n int) {
	s.Ms += float64(d) / float64(time.Millisecond)
	s.N += n
}

func (s spent) each() float64 { return s.Ms / float64(s.N) }

// field returns the number after key in a file of "key value" lines.
func field(file, key string) (float64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		if w := strings.Fields(s.Text()); len(w) > 1 && w[0] == key {
			return strconv.ParseFloat(w[1], 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", file, key)
}
