package main

import (
	"strings"

	iapmeshv1 "github.com/iapmesh/iapmesh/proto/iapmesh/v1"
)

func parseRole(s string) (iapmeshv1.Role, error) {
	v, ok := iapmeshv1.Role_value["ROLE_"+strings.ToUpper(s)]
	if !ok || v == 0 {
		return 0, usagef("role %.40q: want control, proxy or aggregator", s)
	}
	return iapmeshv1.Role(v), nil
}

func parseRoles(in []string) ([]iapmeshv1.Role, error) {
	var out []iapmeshv1.Role
	for _, s := range in {
		r, err := parseRole(s)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

func parseCascade(s string) (iapmeshv1.Cascade, error) {
	v, ok := iapmeshv1.Cascade_value["CASCADE_"+strings.ToUpper(s)]
	if !ok || v == 0 {
		return 0, usagef("--cascade %.40q: want keep, quarantine or kill", s)
	}
	return iapmeshv1.Cascade(v), nil
}
