import cloakroom from "./index.js";

export default cloakroom;
export const { load, login, logout, principal, CloakroomError } = cloakroom;
