"use strict";

const NODE = ["process", "console", "Buffer", "setTimeout", "setImmediate", "clearTimeout", "URL", "__dirname"];

/** Checks the package: eslint --config tests/eslint.config.js . */
module.exports = [
  {
    files: ["**/*.js"],
    languageOptions: {
      sourceType: "commonjs",
      ecmaVersion: 2022,
      globals: Object.fromEntries(NODE.map((name) => [name, "readonly"])),
    },
    rules: {
      eqeqeq: ["error", "always", { null: "ignore" }],
      "no-shadow": "error",
      "no-undef": "error",
      "no-unused-vars": ["error", { ignoreRestSiblings: true, argsIgnorePattern: "^_", varsIgnorePattern: "^_" }],
      "prefer-const": "error",
    },
  },
];
