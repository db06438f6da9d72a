package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/overlayd/overlayd/policy"
)

// parseSelector parses kubectl's notation: a, !a, a=b, a==b, a!=b, a in (b,c), a notin (b,c), with commas between.
func parseSelector(text string) (s policy.Selector, err error) {
	for text = strings.TrimSpace(text); text != ""; {
		end := strings.IndexByte(text, ',')
		if open := strings.IndexByte(text, '('); open >= 0 && open < end || end < 0 && open >= 0 {
			closed := strings.IndexByte(text, ')')
			if closed < open {
				return s, errors.New("a parenthesis is not closed")
			}
			if end = strings.IndexByte(text[closed:], ','); end >= 0 {
				end += closed
			}
		}
		part := text
		if text = ""; end >= 0 {
			part, text = part[:end], strings.TrimSpace(part[end+1:])
		}
		r, err := parseRequirement(strings.TrimSpace(part))
		if err != nil {
			return s, err
		}
		s.MatchExpressions = append(s.MatchExpressions, r)
	}
	return s, nil
}

func parseRequirement(text string) (r policy.Requirement, err error) {
	head, list, isList := strings.Cut(text, "(")
	fields := strings.Fields(head)
	switch {
	case isList && len(fields) == 2 && (fields[1] == "in" || fields[1] == "notin") && strings.HasSuffix(list, ")"):
		r = policy.Requirement{Key: fields[0], Operator: policy.In}
		if fields[1] == "notin" {
			r.Operator = policy.NotIn
		}
		for value := range strings.SplitSeq(strings.TrimSuffix(list, ")"), ",") {
			r.Values = append(r.Values, strings.TrimSpace(value))
		}
	case strings.Contains(text, "="):
		key, value, _ := strings.Cut(text, "=")
		r = policy.Requirement{Key: key, Operator: policy.In, Values: []string{strings.TrimSpace(strings.TrimPrefix(value, "="))}}
		if not, ok := strings.CutSuffix(key, "!"); ok {
			r.Key, r.Operator = not, policy.NotIn
		}
	case strings.HasPrefix(text, "!"):
		r = policy.Requirement{Key: text[1:], Operator: policy.DoesNotExist}
	default:
		r = policy.Requirement{Key: text, Operator: policy.Exists}
	}
	r.Key = strings.TrimSpace(r.Key)
	for _, value := range append(r.Values, "") {
		if err := policy.ValidateLabels(map[string]string{r.Key: value}); err != nil {
			return r, fmt.Errorf("%q: %w", text, err)
		}
	}
	return r, nil
}
