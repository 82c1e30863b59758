"use strict";

module.exports = [
  {
    files: ["**/*.js"],
    languageOptions: { sourceType: "commonjs", ecmaVersion: 2022, globals: { process: "readonly", console: "readonly", Buffer: "readonly", setTimeout: "readonly", clearTimeout: "readonly", URL: "readonly" } },
    rules: { "no-undef": "error", "no-unused-vars": "error", "prefer-const": "error", eqeqeq: "error", "no-shadow": "error" },
  },
];
