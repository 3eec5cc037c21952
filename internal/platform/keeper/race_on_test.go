//go:build race

package keeper_test

// race tells to build the keeper with the detector that this test is built with.
const race = true
